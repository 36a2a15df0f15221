"""A browser, and a real model that finds coloured buttons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lib_mlx.agent import Place
from tests.grounding.conftest import TRAINED, loaded
from tests.server.web.conftest import browser

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

__all__ = ["browser"]


def find_with_tiny_actor(picture: Image, target: str) -> Place:
    """Ask the trained tiny GUI-Actor, in this thread."""
    point = loaded(TRAINED).ground(picture, target).point
    return Place(point.x, point.y)


@pytest.fixture(scope="session")
def ground() -> Callable[[Image, str], Place]:
    """A real grounder."""
    return find_with_tiny_actor
