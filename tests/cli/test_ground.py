"""`lib-mlx ground`, `eval screenspot` and `agent`."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from lib_mlx import LibMlxError
from lib_mlx.cli import app
from tests.cli.test_generate import ROOT
from tests.server.web.conftest import NAMES

if TYPE_CHECKING:
    from pathlib import Path

GUI = ROOT / "tests/fixtures/gui"
ACTOR = GUI / "models/tiny-gui-actor-qwen2vl"
DIALOG = GUI / "screenshots/dialog.png"


def run(*arguments: object, answers: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command to its end; in this process, for importing what reads images takes seconds."""
    out = CliRunner().invoke(app, [*map(str, arguments)], input=answers)
    why = out.stderr
    if isinstance(out.exception, LibMlxError):
        why += f"error: {out.exception.message} fix: {out.exception.hint}"
    return subprocess.CompletedProcess(arguments, out.exit_code, out.stdout, why)


def test_ground(tmp_path: Path) -> None:
    """The action on stdout, candidates on stderr, a picture where it is asked for; as JSON all of it."""
    from PIL import Image

    done = run("ground", DIALOG, "Click the blue button", "-m", ACTOR, "-o", tmp_path / "out.png")
    assert (done.returncode, done.stdout) == (0, "pyautogui.click(41, 265)\n"), done.stderr
    assert "(41, 265)  score 0.08" in done.stderr
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (448, 336)
    done = run("ground", DIALOG, "Click the blue button", "-m", ACTOR, "--json", "--free")
    assert json.loads(done.stdout)["pointers"][0][0]["pixel"] == [41, 265]


def test_show() -> None:
    """What a GUI-Actor can do is told before it is loaded."""
    shown = json.loads(run("show", ACTOR, "--json").stdout)
    assert shown["capabilities"] == ["completion", "vision", "grounding"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((GUI / "nowhere.png", "Click it", "-m", ACTOR), "cannot be read"),
        ((DIALOG, "Click it", "-m", GUI / "models/tiny-qwen2-vl"), "does not point"),
        ((DIALOG, "Click it", "-m", ACTOR, "-o", "/tmp/x.what"), "no known format"),
    ],
)
def test_what_cannot_be_grounded(arguments: tuple[object, ...], why: str) -> None:
    """The error says what and how to fix it."""
    done = run("ground", *arguments)
    assert done.returncode != 0
    assert why in done.stderr
    assert "fix:" in done.stderr


def test_eval(tmp_path: Path) -> None:
    """A table, or JSON, of a data set's layout."""
    case = json.loads((GUI / "screenshots/cases.json").read_text())[0]
    left, top, right, bottom = case["target_box"]
    entry = {
        "img_filename": "dialog.png",
        "bbox": [left, top, right - left, bottom - top],
        "instruction": case["instruction"],
        "data_type": "text",
    }
    (tmp_path / "screenspot_imgs").mkdir()
    shutil.copy(DIALOG, tmp_path / "screenspot_imgs")
    (tmp_path / "screenspot_web.json").write_text(json.dumps([entry] * 2))
    done = run("eval", "screenspot", tmp_path, "-m", ACTOR)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["hit@1", "overlap@1", "hit@3", "overlap@3"]
    assert done.stdout.splitlines()[-1].split() == ["all", *["100.0%"] * 4]
    done = run("eval", "screenspot", tmp_path, "-m", ACTOR, "--json", "--limit", 1)
    assert json.loads(done.stdout)["examples"] == 1


@pytest.mark.slow
def test_agent(tmp_path: Path) -> None:
    """It clicks what it is told to on a page, asks first, and writes a report."""
    if not any(map(shutil.which, NAMES)):
        pytest.skip("there is no browser")
    page = ROOT / "examples/agent/buttons.html"
    report = tmp_path / "report.html"
    asked = (
        "agent",
        "Click the blue button",
        "Click the red button",
        "--url",
        page.as_uri(),
        "-m",
        ACTOR,
        "--size",
        "420x336",
    )
    done = run(*asked, "--yes", "--report", report)
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr
    assert done.stderr.count("Done.") == 3
    assert report.read_text().count("data:image/png;base64,") == 3
    done = run(*asked, answers="n\n")
    assert (done.returncode, done.stdout) == (1, "The user did not allow this action.\n")
    assert "1. click Click the blue button at (" in done.stderr


def test_an_agent_that_is_told_too_little() -> None:
    """What is missing is named."""
    assert "--url or --desktop" in run("agent", "Click it", "-m", ACTOR).stderr
    assert "--model or --grounder" in run("agent", "Click it", "--url", "about:blank").stderr
    done = run("agent", "a", "b", "--url", "about:blank", "-m", ACTOR, "--planner", "http://127.0.0.1:9/v1")
    assert "one task" in done.stderr
    assert "no size" in run("agent", "a", "--url", "about:blank", "-m", ACTOR, "--size", "big").stderr
