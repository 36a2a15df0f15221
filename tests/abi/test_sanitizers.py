"""The native code, and the hosts around it, under the thread, address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

import build_ffi
from tests.abi.conftest import ROOT, Programs, expect, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

# Python and MLX are not instrumented, so that their own synchronisation goes unseen.
SUPPRESSIONS = "".join(f"race:{module}\n" for module in ("libpython3", "libmlx", "_socket.cpython", "mlx/core"))

OPTIONS = {
    # Threads of ours run on at exit, and Python is never finalized: both are meant.
    "TSAN_OPTIONS": "exitcode=66:report_thread_leaks=0:die_after_fork=0:suppressions={}",
    "ASAN_OPTIONS": "exitcode=66:detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1:exitcode=66:print_stacktrace=1",
}


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def sanitized(request: pytest.FixtureRequest, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Programs and a copy of the package, built with a sanitizer."""
    directory = tmp_path_factory.mktemp("sanitized")
    (directory / ".venv").symlink_to(ROOT / ".venv")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    package = shutil.copytree(library.parent, directory / "lib_mlx", ignore=ignored)
    flags = (f"-fsanitize={request.param}", "-fno-omit-frame-pointer", "-g")
    instrumented, *_ = build_ffi.main(package, flags)
    return Programs(instrumented, directory, flags)


@pytest.mark.parametrize(
    ("name", "needs_model"),
    [
        ("inputs", False),
        ("race", False),
        ("cancelled_thread", False),
        ("status_without_gil", False),
        ("forked", False),
        ("life", True),
        ("status_during_load", True),
    ],
)
def test_sanitizers_find_nothing(sanitized: Programs, crafted: Path, name: str, needs_model: bool) -> None:
    """No data race, deadlock, invalid access or undefined behaviour is reported."""
    suppressions = sanitized.directory / "suppressions"
    suppressions.write_text(SUPPRESSIONS)
    options = {key: value.format(suppressions) for key, value in OPTIONS.items()}
    arguments = [crafted] if needs_model else []
    result = run([sanitized.build(name), *arguments], env={**os.environ, **options})
    result.stdout = ""  # figures
    expect(result)
