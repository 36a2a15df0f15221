"""What a GUI-Actor found, drawn over the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from lib_mlx.grounding.result import Grounding, Pointer

_DARKEST = 170  # of 255: the picture shows through
_RADIUS = 10


def overlay(picture: Image, found: Grounding) -> Image:
    """Return a copy of the picture with each pointer's attention in red and its candidates circled, the best in red."""
    from PIL import Image as Pictures
    from PIL import ImageDraw

    drawn = picture.convert("RGB")
    for pointer in found.pointers:
        red = Pictures.new("RGB", drawn.size, (255, 0, 0))
        drawn.paste(red, mask=_mask(pointer, found).resize(drawn.size, Pictures.Resampling.NEAREST))
    draw = ImageDraw.Draw(drawn)
    for pointer in found.pointers:
        for point in reversed(pointer.points):
            x, y = found.pixel(point)
            best = point is pointer.points[0]
            box = (x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS)
            draw.ellipse(box, outline="red" if best else "orange", width=3 if best else 1)
    return drawn


def _mask(pointer: Pointer, found: Grounding) -> Image:
    from PIL import Image as Pictures

    most = max(pointer.attention) or 1.0
    mask = Pictures.new("L", (found.columns, found.rows))
    mask.putdata([int(_DARKEST * score / most) for score in pointer.attention])
    return mask
