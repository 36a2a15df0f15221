"""The first of the two resizings of GUI-Actor's pipeline, and what is kept of a picture. Pure but for Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib_mlx.models.image_size import MAX_PIXELS, MIN_PIXELS, fetch_resize

if TYPE_CHECKING:
    from PIL.Image import Image

_MERGE = 2  # patches of a side of a merged patch


@dataclass(frozen=True)
class Screenshot:
    """What points are counted by."""

    grid: tuple[int, int, int]
    """Of patches of 14 pixels: 1, rows, columns."""
    width: int
    """Of the picture as it was given, in pixels."""
    height: int

    @property
    def columns(self) -> int:
        """Merged patches across: the columns of an attention map."""
        return self.grid[2] // _MERGE

    @property
    def rows(self) -> int:
        """Merged patches down."""
        return self.grid[1] // _MERGE


def fetched(picture: Image) -> Image:
    """Resize a picture as it is when it is fetched; the image processor resizes it again.

    Doing both at once gives another grid for about a tenth of the sizes that have to shrink.

    Raises:
        InvalidArgument: one side is more than 200 times the other.
    """
    from PIL.Image import Resampling

    height, width = fetch_resize(picture.height, picture.width, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return picture.convert("RGB").resize((width, height), Resampling.BICUBIC)
