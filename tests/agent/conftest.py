"""A browser, and a real model that finds coloured buttons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lib_mlx.agent import Place
from tests.grounding.conftest import TRAINED, loaded, outcome
from tests.server.web.conftest import browser

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

__all__ = ["browser"]


def find_with_tiny_actor(picture: Image, target: str) -> Place:
    """Ask the trained tiny GUI-Actor, in this thread."""
    from lib_mlx.grounding.actor import GroundingPrompt
    from lib_mlx.grounding.screenshot import read_screenshot

    known = loaded(TRAINED)
    screenshot = read_screenshot(picture, known.image_processor)
    text = known.interface.prompt(target, patches=screenshot.patches, free=False)
    point = outcome(known.actor.ground(GroundingPrompt(known.encode(text), screenshot))).point
    return Place(point.x, point.y)


@pytest.fixture(scope="session")
def ground() -> Callable[[Image, str], Place]:
    """A real grounder."""
    return find_with_tiny_actor
