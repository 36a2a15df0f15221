"""An agent that works with a screen: look, plan, ground, act, look again.

    from lib_mlx.agent import Agent, Clicks, browser_page

    with browser_page("https://example.org") as page:
        Agent(page, ground).run(Clicks(["Click the blue button"]))

Everything is imported when it is first used; playwright and pyautogui come with `pip install 'lib-mlx[agent]'`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib_mlx.agent.actions import Action, Kind, read_action
    from lib_mlx.agent.browser import BrowserScreen, browser_page
    from lib_mlx.agent.desktop import DesktopScreen
    from lib_mlx.agent.grounders import ChatGrounder, read_place
    from lib_mlx.agent.loop import Agent, Run, Step
    from lib_mlx.agent.planners import ChatPlanner, Clicks
    from lib_mlx.agent.report import write_report
    from lib_mlx.agent.screen import Place, Recorder, Screen

_ROOMS = {
    "Action": "actions",
    "Kind": "actions",
    "read_action": "actions",
    "BrowserScreen": "browser",
    "browser_page": "browser",
    "DesktopScreen": "desktop",
    "ChatGrounder": "grounders",
    "read_place": "grounders",
    "Agent": "loop",
    "Run": "loop",
    "Step": "loop",
    "ChatPlanner": "planners",
    "Clicks": "planners",
    "write_report": "report",
    "Place": "screen",
    "Recorder": "screen",
    "Screen": "screen",
}

__all__ = [
    "Action",
    "Agent",
    "BrowserScreen",
    "ChatGrounder",
    "ChatPlanner",
    "Clicks",
    "DesktopScreen",
    "Kind",
    "Place",
    "Recorder",
    "Run",
    "Screen",
    "Step",
    "browser_page",
    "read_action",
    "read_place",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lib_mlx.agent.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
