"""A page of a browser, driven by Playwright."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from typing import TYPE_CHECKING, Any

from lib_mlx.agent.actions import DIRECTIONS, Kind
from lib_mlx.agent.needs import need
from lib_mlx.errors import NotFound, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

    from lib_mlx.agent.actions import Action
    from lib_mlx.agent.screen import Place

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SETTLE_MS = 150  # for what a page does when it is clicked
_OF_A_SCREEN = 0.8  # how far one scroll goes
# The element at a point, inside open shadow trees too.
_AT = """([x, y]) => {
    let found = document.elementFromPoint(x, y);
    while (found?.shadowRoot?.elementFromPoint(x, y)) found = found.shadowRoot.elementFromPoint(x, y);
    return found;
}"""
_COPY = """text => {
    const before = document.activeElement, area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    before?.focus();
    return copied;
}"""


class BrowserScreen:
    """A page as a screen.

    Args:
        page: Playwright's, of its synchronous API; used on its own thread only.
    """

    def __init__(self, page: Any) -> None:
        self._page = page

    def look(self) -> Image:
        """Return what the viewport shows, one pixel for each of CSS's.

        Raises:
            NotFound: the page is gone.
        """
        from PIL import Image

        with _told("The page cannot be looked at"):
            content = self._page.screenshot(scale="css")
        picture = Image.open(io.BytesIO(content))
        picture.load()
        return picture

    def act(self, action: Action, places: Sequence[Place]) -> None:
        """Do it with mouse and keyboard.

        Raises:
            NotFound: the list has no such entry, or the page is gone or gone elsewhere.
            UnsupportedFeature: the page lets nothing be copied.
        """
        with _told("The page did not do that"):
            self._act(action, places)
            self._page.wait_for_timeout(_SETTLE_MS)
            self._page.wait_for_load_state("domcontentloaded")  # a click may have led elsewhere

    def _act(self, action: Action, places: Sequence[Place]) -> None:
        size = self._page.viewport_size or self._page.evaluate("() => ({width: innerWidth, height: innerHeight})")
        points = [(place.x * size["width"], place.y * size["height"]) for place in places]
        mouse, keyboard = self._page.mouse, self._page.keyboard
        match action.kind:
            case Kind.CLICK:
                mouse.click(*points[0])
            case Kind.INPUT:
                mouse.click(*points[0])
                keyboard.insert_text(action.value)
            case Kind.SELECT:
                self._select(points[0], action.value)
            case Kind.HOVER:
                mouse.move(*points[0])
            case Kind.ENTER:
                keyboard.press("Enter")
            case Kind.SCROLL:
                across, down = DIRECTIONS[action.value.lower()]
                mouse.wheel(across * size["width"] * _OF_A_SCREEN, down * size["height"] * _OF_A_SCREEN)
            case Kind.SELECT_TEXT:
                mouse.move(*points[0])
                mouse.down()
                mouse.move(*points[1])
                mouse.up()
            case Kind.COPY:
                self._copy(action.value)

    def _select(self, point: tuple[float, float], value: str) -> None:
        """Choose from a list: a browser's own is not part of the page's picture, so it is not clicked through."""
        found = self._page.evaluate_handle(_AT, list(point)).as_element()
        if not value or found is None or found.evaluate("it => it.tagName") != "SELECT":
            self._page.mouse.click(*point)
            return
        labels = found.evaluate("it => [...it.options].map(option => option.label)")
        if value not in labels:
            raise NotFound(f"The list has no {value!r}.", hint=f"It has {', '.join(map(repr, labels[:20]))}.")
        found.select_option(label=value)

    def _copy(self, text: str) -> None:
        if not text:
            self._page.keyboard.press("ControlOrMeta+C")
        elif not self._page.evaluate(_COPY, text):
            raise UnsupportedFeature("This page lets nothing be copied.", hint="Type the text instead.")


@contextlib.contextmanager
def browser_page(
    url: str, *, headless: bool = True, width: int = 1280, height: int = 800, executable: str | None = None
) -> Iterator[BrowserScreen]:
    """Open a page in a browser of its own, which is closed afterwards.

    Args:
        url: of the page.
        headless: without a window.
        width: of the viewport, in CSS's pixels.
        height: likewise.
        executable: the browser; None: the machine's Chromium or Chrome, else the one that Playwright has fetched.

    Raises:
        UnsupportedFeature: playwright is not installed.
        NotFound: there is no browser, or the page cannot be opened.
    """
    api = need("playwright.sync_api")
    path = executable or next(filter(None, map(shutil.which, _BROWSERS)), None)
    # Chromium's sandbox refuses to be run by root.
    options = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=options, headless=headless)
        except api.Error as error:
            raise NotFound(f"No browser: {_line(error)}.", hint="Run: playwright install chromium") from error
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            try:
                page.goto(url)
            except api.Error as error:
                raise NotFound(f"{url} cannot be opened: {_line(error)}.", hint="Check the address.") from error
            yield BrowserScreen(page)
        finally:
            browser.close()


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Make Playwright's errors ours."""
    try:
        yield
    except need("playwright.sync_api").Error as error:
        raise NotFound(f"{what}: {_line(error)}.", hint="Look at the page again.") from error


def _line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]
