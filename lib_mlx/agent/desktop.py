"""The machine's own desktop, driven by pyautogui. Moving the mouse into a corner of the screen stops it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lib_mlx.agent.actions import DIRECTIONS, Kind
from lib_mlx.agent.needs import need
from lib_mlx.errors import Cancelled, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from lib_mlx.agent.actions import Action
    from lib_mlx.agent.screen import Place

_MOVE_S = 0.2  # for a movement of the mouse, so that people see it and may stop it
_KEY_S = 0.01
_COMMAND = "command" if sys.platform == "darwin" else "ctrl"
_CLICKS = 10  # of a wheel, about a screen


class DesktopScreen:
    """The whole screen.

    Raises:
        UnsupportedFeature: pyautogui is not installed, or there is no display.
    """

    def __init__(self) -> None:
        self._gui: Any = need("pyautogui")

    def look(self) -> Image:
        """Return what the screen shows."""
        from PIL import ImageGrab

        return ImageGrab.grab()

    def act(self, action: Action, places: Sequence[Place]) -> None:
        """Do it with mouse and keyboard.

        Raises:
            Cancelled: the user has moved the mouse into a corner.
        """
        try:
            self._act(action, [place.pixel(*self._gui.size()) for place in places])
        except self._gui.FailSafeException as error:
            raise Cancelled("The mouse was moved into a corner of the screen.", hint="That stops the agent.") from error

    def _act(self, action: Action, points: Sequence[tuple[int, int]]) -> None:
        gui = self._gui
        if points:
            gui.moveTo(*points[0], duration=_MOVE_S)
        match action.kind:
            case Kind.CLICK | Kind.SELECT | Kind.INPUT:
                gui.click()
                if action.kind is not Kind.CLICK:
                    self._type(action.value)
            case Kind.ENTER:
                gui.press("enter")
            case Kind.SCROLL:
                across, down = DIRECTIONS[action.value.lower()]
                (gui.hscroll if across else gui.scroll)((across or -down) * _CLICKS)
            case Kind.SELECT_TEXT:
                gui.mouseDown()
                gui.moveTo(*points[1], duration=_MOVE_S)
                gui.mouseUp()
            case Kind.COPY if not action.value:
                gui.hotkey(_COMMAND, "c")
            case Kind.COPY:
                _copy(action.value)

    def _type(self, text: str) -> None:
        """Type a text; pyautogui leaves out what is on no American keyboard, so that is pasted."""
        if text.isascii():
            self._gui.write(text, interval=_KEY_S)
        else:
            _copy(text)
            self._gui.hotkey(_COMMAND, "v")


def _copy(text: str) -> None:
    clipboard = need("pyperclip")
    try:
        clipboard.copy(text)
    except clipboard.PyperclipException as error:
        raise UnsupportedFeature(
            "There is no clipboard to copy to.", hint="On Linux, install xclip or wl-clipboard."
        ) from error
