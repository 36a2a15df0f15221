"""examples/python/camera.py, with a film in place of a camera and a real model behind the server."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import lib_mlx
from tests.abi.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GUI = ROOT / "tests/fixtures/gui"


def test_it_answers_about_the_newest_frame(tmp_path: Path) -> None:
    """Of a film of two seconds it shows the model the frame that is there when the last answer has come."""
    cv2 = pytest.importorskip("cv2", reason="opencv-python is not installed")
    screenshot = cv2.imread(str(GUI / "screenshots/dialog.png"))
    film = str(tmp_path / "film.avi")
    height, width = screenshot.shape[:2]
    writer = cv2.VideoWriter(film, cv2.VideoWriter.fourcc(*"MJPG"), 25, (width, height))
    for _ in range(50):
        writer.write(screenshot)
    writer.release()
    path = GUI / "models/tiny-gui-actor-qwen2vl"
    with lib_mlx.load_model(path) as model, model.start_server() as server:
        program = [sys.executable, ROOT / "examples/python/camera.py", f"{server.base_url}/v1", "Click the blue button"]
        done = subprocess.run(
            [*program, "--source", film], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
        )
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"^frame (\d+): pyautogui\.click\((\d+), (\d+)\)$", done.stdout, re.MULTILINE)
    assert len(answers) == len(done.stdout.splitlines())
    numbers = [int(number) for number, _, _ in answers]
    assert numbers == sorted(set(numbers))
    assert 1 < len(numbers) < 50
    assert numbers[-1] == 50
    for _, x, y in answers:
        assert abs(int(x) - 48) < 40  # near the button: the film is not quite the screenshot
        assert abs(int(y) - 267) < 40


def test_no_camera(tmp_path: Path) -> None:
    """It says so."""
    pytest.importorskip("cv2", reason="opencv-python is not installed")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'examples/python')!r})\nfrom camera import LatestFrame"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nLatestFrame({str(tmp_path / 'none.avi')!r})"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "cannot be opened" in done.stderr
