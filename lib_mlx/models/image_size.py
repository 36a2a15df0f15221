"""How large images and videos enter Qwen's vision models: multiples of a merged patch, with bounded area."""

from __future__ import annotations

import math

from lib_mlx.errors import InvalidArgument

FACTOR = 28
"""Pixels of a side of a merged patch: patches of 14, merged 2 by 2."""
MIN_PIXELS = 4 * FACTOR**2
MAX_PIXELS = 16384 * FACTOR**2
MAX_RATIO = 200
"""Of the longer side to the shorter."""


def smart_resize(
    height: int, width: int, *, factor: int = FACTOR, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Return (height, width) as the image processor of Qwen2-VL makes them.

    Both are multiples of `factor`, their product is within the bounds and their ratio about that of the image.

    Raises:
        InvalidArgument: one side is more than 200 times the other.
    """
    _refuse_strips(height, width)
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > max_pixels:
        high, wide = _shrunk(height, width, factor, max_pixels)
        return max(factor, high), max(factor, wide)
    if high * wide < min_pixels:
        return _enlarged(height, width, factor, min_pixels)
    return high, wide


def fetch_resize(
    height: int, width: int, *, factor: int = FACTOR, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Return (height, width) as Qwen's tools make them when an image is read: likewise, but no side rounds to 0.

    Raises:
        InvalidArgument: one side is more than 200 times the other.
    """
    _refuse_strips(height, width)
    high, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    if high * wide > max_pixels:
        return _shrunk(height, width, factor, max_pixels)
    if high * wide < min_pixels:
        return _enlarged(height, width, factor, min_pixels)
    return high, wide


def _refuse_strips(height: int, width: int) -> None:
    if max(height, width) > MAX_RATIO * min(height, width):
        raise InvalidArgument(
            f"The image has {width} x {height} pixels; one side may be {MAX_RATIO} times the other at most.",
            hint="Cut it into pieces.",
        )


def _shrunk(height: int, width: int, factor: int, max_pixels: int) -> tuple[int, int]:
    by = math.sqrt(height * width / max_pixels)
    return math.floor(height / by / factor) * factor, math.floor(width / by / factor) * factor


def _enlarged(height: int, width: int, factor: int, min_pixels: int) -> tuple[int, int]:
    by = math.sqrt(min_pixels / (height * width))
    return math.ceil(height * by / factor) * factor, math.ceil(width * by / factor) * factor


def smart_resize_video(
    frames: int, height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return (height, width) of the frames of a video as mlx-vlm's processor makes them, without its least side.

    `min_pixels` and `max_pixels` bound all frames together, of which there is an even number then.
    """
    high, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    together = math.ceil(frames / 2) * 2 * high * wide
    if together > max_pixels:
        by = math.sqrt(frames * height * width / max_pixels)
        high, wide = (max(factor, math.floor(side / by / factor) * factor) for side in (height, width))
    elif together < min_pixels:
        by = math.sqrt(min_pixels / (frames * height * width))
        high, wide = (math.ceil(side * by / factor) * factor for side in (height, width))
    return high, wide
