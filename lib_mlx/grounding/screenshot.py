"""From a picture to what the vision tower reads, resized twice as GUI-Actor's pipeline does. Any thread; no MLX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_mlx.models.image_size import MAX_PIXELS, MIN_PIXELS, PixelBounds, fetch_resize

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_MERGE = 2  # patches of a side of a merged patch


@dataclass(frozen=True)
class Screenshot:
    """A picture, ready for the model."""

    pixels: np.ndarray
    """(patches, values)."""
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

    @property
    def patches(self) -> int:
        """All merged patches."""
        return self.columns * self.rows


def read_screenshot(image: Image, processor: Any, bounds: PixelBounds | None = None) -> Screenshot:
    """Resize a picture as it is fetched, then as the image processor does within `bounds`.

    Doing it at once gives another grid for about a tenth of the sizes that have to shrink.

    Args:
        image: of any mode.
        processor: the checkpoint's image processor, mlx-vlm's.
        bounds: of its pixels as the model sees it; None: the processor's own.

    Raises:
        InvalidArgument: one side is more than 200 times the other.
    """
    from PIL.Image import Resampling

    height, width = fetch_resize(image.height, image.width, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    fetched = image.convert("RGB").resize((width, height), Resampling.BICUBIC)
    limits = {"min_pixels": bounds and bounds.least, "max_pixels": bounds and bounds.most}
    made = processor(images=[fetched], **{name: limit for name, limit in limits.items() if limit is not None})
    one, rows, columns = (int(value) for value in made["image_grid_thw"][0])
    return Screenshot(made["pixel_values"], (one, rows, columns), image.width, image.height)
