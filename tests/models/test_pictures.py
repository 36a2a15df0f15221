"""From files to pixels: what can be seen on them stays to be seen."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_mlx.models.pictures import decode


def file(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def seen(content: bytes) -> tuple[int, ...]:
    """The colour of the first pixel."""
    return tuple(np.asarray(decode(content, "image"))[0, 0])


@pytest.mark.parametrize(
    ("picture", "options", "colour"),
    [
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), {}, (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), {}, (255, 127, 127)),
        (Image.new("LA", (4, 4), (0, 0)), {}, (255, 255, 255)),
        (Image.new("P", (4, 4), 0), {"transparency": 0}, (255, 255, 255)),
        (Image.new("L", (4, 4), 7), {"transparency": 7}, (255, 255, 255)),
        (Image.new("RGB", (4, 4), (1, 2, 3)), {}, (1, 2, 3)),
    ],
    ids=["RGBA", "half", "LA", "P", "L", "RGB"],
)
def test_what_can_be_seen_through(picture: Image.Image, options: dict[str, Any], colour: tuple[int, ...]) -> None:
    """It is on white: black on nothing would be black on black."""
    assert seen(file(picture, **options)) == colour


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (30000, 117), (65535, 255)])
def test_sixteen_bits(value: int, grey: int) -> None:
    """Greys of 16 bits become those of 8, and not all white."""
    assert seen(file(Image.fromarray(np.full((4, 4), value, np.uint16)))) == (grey,) * 3


def test_upright() -> None:
    """A camera's note of how it was held is followed; one that makes no sense is not."""
    turned = Image.Exif()
    turned[0x112] = 6
    assert decode(file(Image.new("RGB", (20, 10)), "JPEG", exif=turned), "image").size == (10, 20)
    assert decode(file(Image.new("RGB", (20, 10)), "JPEG", exif=b"Exif\0\0II*\0nonsense"), "image").size == (20, 10)


def test_cmyk_and_animations() -> None:
    """Inks become colours; of an animation the first frame is seen."""
    red = seen(file(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert red == pytest.approx((255, 0, 0), abs=5)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        assert seen(file(frames[0], kind, save_all=True, append_images=frames[1:]))[0] > 240
