"""What an agent looks at and acts on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from lib_mlx.agent.actions import Action


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere on a screen."""

    x: float
    """0 is the left edge, 1 the right one."""
    y: float
    """0 is the top."""

    def pixel(self, width: int, height: int) -> tuple[int, int]:
        """Return the pixel it lies in, of a screen of that size."""
        return min(int(self.x * width), width - 1), min(int(self.y * height), height - 1)


class Screen(Protocol):
    """A screen, with mouse and keyboard."""

    def look(self) -> Image:
        """Return what it shows."""

    def act(self, action: Action, places: Sequence[Place]) -> None:
        """Do `action` at `places`, one for each of its targets or positions. Not called for actions without a body.

        Raises:
            LibMlxError: it cannot be done.
        """


@dataclass
class Recorder:
    """A screen that shows one picture and keeps what was done to it: for trying things out."""

    picture: Image
    done: list[tuple[Action, tuple[Place, ...]]] = field(default_factory=list)

    def look(self) -> Image:
        """Return the picture."""
        return self.picture

    def act(self, action: Action, places: Sequence[Place]) -> None:
        """Keep it."""
        self.done.append((action, tuple(places)))
