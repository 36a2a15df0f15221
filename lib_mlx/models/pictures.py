"""From the content of an image file to pixels. Any thread; whatever is wrong with a file is a clear error."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from lib_mlx.errors import InvalidArgument

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 100_000_000
"""Of a file: a few kilobytes can unpack to gigabytes."""


def decode(content: bytes, param: str) -> Picture:
    """Return the picture of a file in RGB, turned upright; of an animation its first frame.

    Args:
        content: of the file.
        param: the field it came from, for errors.

    Raises:
        InvalidArgument: it is no picture of a known format, is damaged, empty or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():  # of sizes, which are looked at here, and of metadata
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{opened.width} x {opened.height}")  # noqa: TRY301
                opened.load()
                return ImageOps.exif_transpose(opened).convert("RGB")
    except Image.DecompressionBombError:  # raised by PIL too
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
