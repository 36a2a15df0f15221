"""What a GUI-Actor finds, free of MLX and HTTP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the picture."""

    x: float
    """0 is the left edge, 1 the right one."""
    y: float
    """0 is the top."""
    score: float
    """Of its region: the mean attention of the region's patches. Points compare within one pointer only."""
    verified: float | None = None
    """The probability, by a verifier model, that this is the place meant; None if none was asked."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """One place that the model points at."""

    points: tuple[Point, ...]
    """Candidates, best first; never empty."""
    attention: tuple[float, ...]
    """Per patch, row by row from the top left; adds up to one."""


@dataclass(frozen=True, slots=True)
class Grounding:
    """What an instruction means on a picture."""

    text: str
    """The action as pyautogui has it, in pixels of the picture: "pyautogui.click(20, 35)"."""
    pointers: tuple[Pointer, ...]
    """Never empty: one for a click, two for a drag."""
    width: int
    """Of the picture, in pixels."""
    height: int
    columns: int
    """Of the attention maps."""
    rows: int

    @property
    def point(self) -> Point:
        """The best candidate of the first pointer."""
        return self.pointers[0].points[0]

    def pixel(self, point: Point) -> tuple[int, int]:
        """Return the pixel of the picture that a point lies in."""
        x, y = int(point.x * self.width), int(point.y * self.height)
        return min(x, self.width - 1), min(y, self.height - 1)
