"""A real page in Chromium: the agent sees it, finds what is meant with a real model, and works with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.agent import Action, Agent, BrowserScreen, Clicks, Kind, Place
from lib_mlx.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL import Image

COLOURS = {
    "red": "rgb(214,40,40)",
    "green": "rgb(46,160,67)",
    "blue": "rgb(31,111,235)",
    "purple": "rgb(130,60,180)",
    "orange": "rgb(240,130,30)",
}
SPOTS = {"red": (30, 60), "green": (250, 50), "blue": (120, 150), "purple": (290, 220), "orange": (40, 260)}
FORM = """
<body style="margin:0; height: 3000px">
<input id="name" style="position:absolute; left:10px; top:10px; width:180px; height:30px">
<select id="size" style="position:absolute; left:10px; top:60px; width:180px; height:30px">
<option>small</option><option>large</option></select>
<button id="over" style="position:absolute; left:10px; top:110px; width:180px; height:30px"
 onmouseover="this.textContent = 'over'">x</button>
<p id="text" style="position:absolute; left:10px; top:150px; margin:0; font:20px monospace">some words</p>
<form onsubmit="document.title = 'sent'; return false"><input id="send"
 style="position:absolute; left:10px; top:200px; width:180px; height:30px"></form>"""


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of 420 x 336 pixels, on a screen of twice as many."""
    context = browser.new_context(viewport={"width": 420, "height": 336}, device_scale_factor=2)
    yield context.new_page()
    context.close()


def button(colour: str) -> str:
    left, top = SPOTS[colour]
    style = f"position:absolute; left:{left}px; top:{top}px; width:80px; height:40px; background:{COLOURS[colour]}"
    return (
        f'<button style="{style}; border:1px solid #555; border-radius:4px; color:white; font:13px sans-serif" '
        f"onclick=\"clicked.push('{colour}')\">Send</button>"
    )


def test_every_button_gets_its_click(page: Any, ground: Callable[[Image.Image, str], Place]) -> None:
    """Asked for five buttons by colour, the agent clicks on each of them, and on nothing else."""
    buttons = "".join(map(button, COLOURS))
    page.set_content(
        f'<body style="margin:0; background:rgb(180,180,185)"><script>clicked = []</script>{buttons}'
        "<script>onclick = e => e.target.tagName == 'BUTTON' || clicked.push('beside')</script>"
    )
    order = ["green", "red", "orange", "blue", "purple"]
    run = Agent(BrowserScreen(page), ground).run(Clicks([f"Click the {colour} button" for colour in order]))
    assert (run.ending, page.evaluate("clicked")) == ("finished", order)
    assert run.steps[0].picture.size == (420, 336)


def act(page: Any, kind: Kind, *points: tuple[float, float], value: str = "") -> None:
    """Do something at points in pixels."""
    places = [Place(x / 420, y / 336) for x, y in points]
    BrowserScreen(page).act(Action(kind, "it", "it", value), places)


def test_the_other_actions(page: Any) -> None:
    """Typing, choosing, hovering, entering, scrolling, selecting and copying do what people's do."""
    page.set_content(FORM)
    act(page, Kind.INPUT, (100, 25), value="Ada Łovelace")
    assert page.input_value("#name") == "Ada Łovelace"
    act(page, Kind.SELECT, (100, 75), value="large")
    assert page.input_value("#size") == "large"
    act(page, Kind.HOVER, (100, 125))
    assert page.text_content("#over") == "over"
    act(page, Kind.INPUT, (100, 215), value="x")
    act(page, Kind.ENTER)
    assert page.title() == "sent"
    act(page, Kind.SELECT_TEXT, (11, 162), (400, 162))
    assert page.evaluate("getSelection().toString().trim()") == "some words"
    act(page, Kind.COPY)
    act(page, Kind.CLICK, (100, 215))
    page.keyboard.press("ControlOrMeta+V")
    assert "some words" in page.input_value("#send")
    act(page, Kind.COPY, value="other words")
    page.keyboard.press("ControlOrMeta+V")
    assert "other words" in page.input_value("#send")
    act(page, Kind.SCROLL, value="down")
    page.wait_for_function("scrollY > 200")
    act(page, Kind.SCROLL, value="up")
    page.wait_for_function("scrollY === 0")


def test_a_list_without_the_entry(page: Any) -> None:
    """It is an error that names the entries."""
    page.set_content(FORM)
    with pytest.raises(NotFound, match="'huge'") as caught:
        act(page, Kind.SELECT, (100, 75), value="huge")
    assert "'small', 'large'" in caught.value.hint


def test_a_page_that_is_gone(page: Any) -> None:
    """Neither looking nor acting is more than an error."""
    screen = BrowserScreen(page)
    page.close()
    with pytest.raises(NotFound, match="cannot be looked at"):
        screen.look()
    with pytest.raises(NotFound, match="did not do that"):
        screen.act(Action(Kind.ENTER), [])


def test_a_click_that_leads_elsewhere(page: Any, tmp_path: Path) -> None:
    """The next look shows the other page."""
    (tmp_path / "b.html").write_text('<body style="background: rgb(1, 2, 3)">')
    (tmp_path / "a.html").write_text('<a href="b.html" style="position:absolute; inset:0">go</a>')
    page.goto((tmp_path / "a.html").as_uri())
    act(page, Kind.CLICK, (200, 100))
    assert BrowserScreen(page).look().convert("RGB").getpixel((200, 100)) == (1, 2, 3)
