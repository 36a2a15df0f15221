"""`lib-mlx export`, as a process."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.test_generate import ROOT

if TYPE_CHECKING:
    from pathlib import Path

MODELS = ROOT / "tests/fixtures/gui/models"


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lib_mlx", "export", "onnx", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_onnx(tmp_path: Path) -> None:
    """It prints the files that it wrote; of another model it says why there are none."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    done = export(MODELS / "tiny-gui-actor-qwen2vl", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "out" / name) for name in ("vision_tower.onnx", "pointer_head.onnx")]
    done = export(MODELS / "tiny-qwen2-vl", tmp_path / "none")
    assert done.returncode != 0
    assert "no GUI-Actor" in done.stderr
    assert not (tmp_path / "none").exists()
