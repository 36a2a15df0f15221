"""Packages of the extra `agent`."""

from __future__ import annotations

import importlib
from typing import Any

from lib_mlx.errors import UnsupportedFeature


def need(module: str) -> Any:
    """Import a module of the extra.

    Raises:
        UnsupportedFeature: it is not installed, or does not work here: without a display, pyautogui does not.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedFeature(
            f"The package of {module!r} is not installed: {error}.", hint="Run: pip install 'lib-mlx[agent]'"
        ) from error
    except (KeyError, OSError) as error:
        raise UnsupportedFeature(
            f"{module!r} does not work here: {type(error).__name__}: {error}.",
            hint="It needs a display: on Linux, set DISPLAY to an X server's.",
        ) from error
