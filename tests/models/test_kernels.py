"""The C that multiplies with packed weights (native/kernels.c)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import build_ffi

pytestmark = pytest.mark.skipif(not build_ffi.HAS_CPU, reason="Linux only")


@pytest.mark.parametrize("flags", [(), pytest.param(("-g", "-O1", "-fsanitize=address"), marks=pytest.mark.slow)])
def test_every_level_agrees_with_plain_c(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Products, norms and activations are right for all formats and shapes, and touch only their memory."""
    compiler = [*build_ffi._compiler(), *build_ffi.STRICT, f"-I{build_ffi.NATIVE}"]
    objects = [tmp_path / f"{level}.o" for level in build_ffi.KERNEL_LEVELS]
    for level, made in zip(build_ffi.KERNEL_LEVELS.values(), objects, strict=True):
        options = [*build_ffi.KERNEL_FLAGS, *level, *flags, "-c", build_ffi.NATIVE / "kernels.c", "-o", made]
        subprocess.run([*compiler, *options], check=True)
    program, source = tmp_path / "kernels", Path(__file__).parent / "c/kernels.c"
    subprocess.run([*compiler, "-O2", *flags, source, *objects, "-lm", "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
