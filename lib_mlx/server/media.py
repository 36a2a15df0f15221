"""Images in request bodies of any dialect: data URLs and base64 become bytes; other URLs are left to be fetched."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import Image, Message, PixelBounds
from lib_mlx.server.http import WireModel

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from lib_mlx.generation import Role

    Detail = Literal["auto", "low", "high", "original"]

_LOW = PixelBounds(most=512 * 512)  # OpenAI's size of `low`
_HINT = "Send a data URL (data:image/png;base64,…), an http(s) or file URL, or attachment:NAME in a form."


class ProcessorOptions(WireModel):
    """How images are made ready, under vLLM's names."""

    min_pixels: int | None = None
    max_pixels: int | None = None

    def bounds(self) -> PixelBounds:
        """Return the bounds; raises InvalidArgument if they are none."""
        for name, value in (("min_pixels", self.min_pixels), ("max_pixels", self.max_pixels)):
            if value is not None and value < 1:
                raise InvalidArgument(f"{name} is {value}; it must be at least 1.", param=f"mm_processor_kwargs.{name}")
        return PixelBounds(self.min_pixels, self.max_pixels)


def image_at(url: str, param: str, detail: Detail | None = None) -> Image:
    """Return the image of a URL; its content if that is in the URL.

    Raises:
        InvalidArgument: it is no URL of an image.
    """
    bounds = _LOW if detail == "low" else PixelBounds()
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        head, comma, data = url.partition(",")
        kind, *options = head[len("data:") :].split(";")
        if not comma or not options or options[-1].strip().lower() != "base64":
            raise InvalidArgument("The data URL is not in base64.", hint=_HINT, param=param)
        return image_in(data, kind.strip().lower(), param, bounds)
    if scheme in {"http", "https", "file"} or url.startswith("/"):
        return Image(url, bounds, param)
    raise InvalidArgument("This is no URL of an image.", hint=_HINT, param=param)


def image_in(data: str, media_type: str | None, param: str, bounds: PixelBounds = PixelBounds()) -> Image:  # noqa: B008
    """Return the image that `data` holds in base64; raises InvalidArgument if it cannot be one."""
    if media_type and media_type != "application/octet-stream" and not media_type.startswith("image/"):
        raise InvalidArgument(f"{media_type!r} is no image.", hint="Send image/png, image/jpeg, …", param=param)
    try:
        return Image(base64.b64decode(data, validate=True), bounds, param)
    except (binascii.Error, ValueError):
        raise InvalidArgument("The data is not base64.", hint="Encode the file's bytes.", param=param) from None


def message_of(role: Role, parts: Iterable[str | Image], joint: str = "") -> Message:
    """Return a message of texts and images; texts that follow each other are joined by `joint`."""
    merged: list[str | Image] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += joint + part
        elif part != "":
            merged.append(part)
    texts = [part for part in merged if isinstance(part, str)]
    return Message(role, joint.join(texts), parts=() if len(texts) == len(merged) else tuple(merged))
