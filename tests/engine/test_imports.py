"""An MLX that cannot be imported: said in words, with what is to be installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.commands import run_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="on macOS there is one build of MLX")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with MLX as plain `pip install mlx` installs it: without a back end."""
    spec = importlib.util.find_spec("mlx")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (place,) = spec.submodule_search_locations
    left_out = shutil.ignore_patterns("libmlx.*", "include", "share", "__pycache__")
    shutil.copytree(place, tmp_path / "packages/mlx", ignore=left_out)
    return tmp_path / "packages"


def test_no_back_end(packages: Path, crafted: Path, tmp_path: Path) -> None:
    """A command and the doctor name the extra that is missing."""
    paths = {"PYTHONPATH": os.pathsep.join((str(packages), str(Path(__file__).resolve().parents[2])))}
    for command in (("run", crafted, "hello"), ("doctor",)):
        told = run_command(*command, folder=tmp_path, code=1, environment=paths)
        assert "MLX is installed without a back end." in told.stdout + told.stderr
        assert "pip install 'lib-mlx[cpu]'" in told.stdout + told.stderr


def test_no_driver(packages: Path, crafted: Path, tmp_path: Path) -> None:
    """MLX's build for CUDA on a machine without NVIDIA's driver: the loader's real complaint, explained."""
    for name, needed in (("libcuda.so.1", ()), ("libmlx.so", ("-Wl,--no-as-needed", "-l:libcuda.so.1"))):
        built = ["cc", "-shared", "-xc", "/dev/null", f"-Wl,-soname,{name}", f"-L{tmp_path}", *needed]
        subprocess.run([*built, "-o", tmp_path / name], check=True)
    (packages / "mlx/lib").mkdir(exist_ok=True)
    (tmp_path / "libmlx.so").rename(packages / "mlx/lib/libmlx.so")
    (tmp_path / "libcuda.so.1").unlink()
    paths = {"PYTHONPATH": os.pathsep.join((str(packages), str(Path(__file__).resolve().parents[2])))}
    told = run_command("run", crafted, "hello", folder=tmp_path, code=1, environment=paths)
    assert "needs libcuda.so.1, which this machine does not have" in told.stderr
    assert "Install NVIDIA's driver" in told.stderr


def test_two_back_ends(tmp_path: Path) -> None:
    """The doctor names both, and how to be left with one."""
    (tmp_path / "packages/mlx_cuda_12-0.32.4.dist-info").mkdir(parents=True)
    metadata = tmp_path / "packages/mlx_cuda_12-0.32.4.dist-info/METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: mlx-cuda-12\nVersion: 0.32.4\n")
    told = run_command("doctor", folder=tmp_path, code=1, environment={"PYTHONPATH": str(tmp_path / "packages")})
    assert "mlx-cpu and mlx-cuda-12 are installed, which have the same files." in told.stdout
    assert "pip uninstall mlx-cpu mlx-cuda-12" in told.stdout


def test_extras() -> None:
    """Without an extra no back end is installed, for two have the same files; each of three extras brings one."""
    wanted = [Requirement(text) for text in distribution("lib-mlx").requires or ()]

    def back_ends(extra: str) -> set[str]:
        found = (
            one for one in wanted if one.name == "mlx" and (not one.marker or one.marker.evaluate({"extra": extra}))
        )
        return {extra for one in found for extra in one.extras}

    assert back_ends("") == set()
    assert [back_ends(name) for name in ("cpu", "cuda", "cuda13")] == [{"cpu"}, {"cuda12"}, {"cuda13"}]
