"""The desktop, on an X server of the test's own: the agent finds a button of a real window and clicks on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: pyautogui connects to the display when it is imported.
PROGRAM = """
import io, threading
from Xlib import X, display
from lib_mlx.agent import Action, Agent, Clicks, DesktopScreen, Kind, Place
from tests.agent.conftest import find_with_tiny_actor

link = display.Display()
screen = link.screen()
got = []
def show(left, top, width, height, colour, name):
    red, green, blue = colour
    pixel = screen.default_colormap.alloc_color(red * 257, green * 257, blue * 257).pixel
    mask = X.ButtonPressMask | X.KeyPressMask | X.PointerMotionMask
    window = screen.root.create_window(left, top, width, height, 0, screen.root_depth, background_pixel=pixel,
                                       event_mask=mask, override_redirect=True)
    window.map()
    names[window.id] = name
    return window
names = {}
show(0, 0, 448, 336, (180, 180, 185), "desktop")
for name, left, top, colour in (("red", 40, 60, (214, 40, 40)), ("green", 300, 60, (46, 160, 67)),
                                ("blue", 60, 220, (31, 111, 235)), ("purple", 320, 230, (130, 60, 180))):
    window = show(left, top, 80, 40, colour, name)
link.sync()
desktop = DesktopScreen()
order = ["blue", "green", "purple", "red"]
run = Agent(desktop, find_with_tiny_actor).run(Clicks([f"Click the {name} button" for name in order]))
def events():
    link.sync()
    return [link.next_event() for _ in range(link.pending_events())]
clicked = [names[event.window.id] for event in events() if event.type == X.ButtonPress]
assert (run.ending, clicked) == ("finished", order), (run.ending, clicked)

here = [Place(0.5, 0.5)]
window.set_input_focus(X.RevertToParent, X.CurrentTime)
desktop.act(Action(Kind.INPUT, "it", value="ab"), here)
desktop.act(Action(Kind.ENTER), [])
keys = [link.keycode_to_keysym(event.detail, 0) for event in events() if event.type == X.KeyPress]
assert [chr(key) for key in keys[:2]] == ["a", "b"] and keys[2] == 0xFF0D, keys
desktop.act(Action(Kind.SCROLL, value="down"), [])
assert {event.detail for event in events() if event.type == X.ButtonPress} == {5}
desktop.act(Action(Kind.HOVER, "it"), [Place(0.25, 0.75)])
at = screen.root.query_pointer()
assert (at.root_x, at.root_y) == (112, 252), (at.root_x, at.root_y)
"""


@pytest.fixture
def display() -> Iterator[str]:
    """An X server without a screen, gone afterwards."""
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("Xvfb is not installed")
    pytest.importorskip("Xlib", reason="pyautogui is not installed")
    read, write = os.pipe()
    arguments = ["-screen", "0", "448x336x24", "-nolisten", "tcp", "-displayfd", str(write)]
    process = subprocess.Popen([server, *arguments], pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as told:
        number = told.readline().strip()
    yield f":{number}"
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_the_desktop(display: str, tmp_path: Path) -> None:
    """Every button that is asked for gets its click; keys, wheel and pointer arrive."""
    (tmp_path / "authority").touch()
    environment = {**os.environ, "DISPLAY": display, "XAUTHORITY": str(tmp_path / "authority"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_without_a_display(tmp_path: Path) -> None:
    """It is an error that says what is missing."""
    pytest.importorskip("Xlib", reason="pyautogui is not installed")
    code = "from lib_mlx.agent import DesktopScreen; DesktopScreen()"
    environment = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert "UnsupportedFeature" in done.stderr
    assert "set DISPLAY" in done.stderr
