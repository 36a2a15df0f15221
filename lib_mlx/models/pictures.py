"""From the content of an image file to pixels. Any thread; whatever is wrong with a file is a clear error."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from lib_mlx.errors import InvalidArgument

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from lib_mlx.generation import Image, Video

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 100_000_000
"""Of a file: a few kilobytes can unpack to gigabytes."""


def content_of(file: Image | Video) -> bytes:
    """Return the content of an image's or a video's file; raises InvalidArgument if that has not been fetched."""
    if not isinstance(file.source, bytes):
        raise InvalidArgument(
            f"The {file.kind} is a URL, which is not fetched here.", hint="Give the file's content.", param=file.param
        )
    return file.source


def decode(content: bytes, param: str) -> Picture:
    """Return the picture of a file in RGB, turned upright, on white; of an animation its first frame.

    Args:
        content: of the file.
        param: the field it came from, for errors.

    Raises:
        InvalidArgument: it is no picture of a known format, is damaged, empty or too large.
    """
    from PIL import Image as Pictures
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():  # of sizes, which are looked at here, and of metadata
            warnings.simplefilter("ignore")
            with Pictures.open(io.BytesIO(content), formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise Pictures.DecompressionBombError(f"{opened.width} x {opened.height}")  # noqa: TRY301
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
    except Pictures.DecompressionBombError:  # raised by PIL too
        raise InvalidArgument(
            f"The image has more than {MAX_PIXELS} pixels.", hint="Make it smaller.", param=param
        ) from None
    except UnidentifiedImageError:
        raise InvalidArgument(
            "The image is of no known format.", hint=f"Send one of {', '.join(FORMATS)}.", param=param
        ) from None
    except Exception as error:  # noqa: BLE001 - decoders raise what they like for a damaged file
        raise InvalidArgument(
            f"The image cannot be read: {str(error)[:200] or type(error).__name__}.",
            hint="The file is damaged; send it again.",
            param=param,
        ) from None


def _rgb(picture: Picture) -> Picture:
    """Return a picture in RGB: what can be seen through is on white, as on a page."""
    from PIL import Image as Pictures

    if picture.mode.startswith("I"):  # 16 bits a pixel, of which Pillow would clip all but the darkest to white
        return picture.point(lambda value: value / 256, "L").convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    seen = picture.convert("RGBA")
    return Pictures.alpha_composite(Pictures.new("RGBA", seen.size, "white"), seen).convert("RGB")
