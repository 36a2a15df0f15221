"""Images, sounds and videos in request bodies: data URLs and base64 become bytes; other URLs are left to be fetched."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import FrameBounds, Image, Message, PixelBounds, Sound, Video
from lib_mlx.server.http import WireModel

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from lib_mlx.generation import Attachment, Role

    Detail = Literal["auto", "low", "high", "original"]

SOUND_FORMATS = ("wav", "mp3", "flac", "ogg")
_WORDS = {"image": "image", "audio": "sound", "video": "video"}
_EXAMPLES = {"image": "image/png, image/jpeg", "audio": "audio/wav, audio/mpeg", "video": "video/mp4, video/webm"}
_LOW = PixelBounds(most=512 * 512)  # OpenAI's size of `low`
_HINT = "Send a data URL (data:image/png;base64,…), an http(s) or file URL, or attachment:NAME in a form."


class InputAudio(WireModel):
    """A sound."""

    data: str
    """In base64, or a data URL."""
    format: str | None = None


class ProcessorOptions(WireModel):
    """How images and videos are made ready, under vLLM's names."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: Annotated[float, Field(gt=0, le=60)] | None = None
    max_frames: Annotated[int, Field(ge=1, le=768)] | None = None

    def frames(self) -> FrameBounds:
        """Return how much of videos is seen."""
        return FrameBounds(self.fps, self.max_frames)

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
        data, _ = _data_of(url, "image", param)
        return Image(_decoded(data, param), bounds, param)
    if _may_be_fetched(url):
        return Image(url, bounds, param)
    raise InvalidArgument("This is no URL of an image.", hint=_HINT, param=param)


def video_at(url: str, param: str) -> Video:
    """Return the video of a URL; its content if that is in the URL. Raises InvalidArgument if it is none."""
    if url[:5].lower() == "data:":
        return Video(_decoded(_data_of(url, "video", param)[0], param), param)
    if _may_be_fetched(url):
        return Video(url, param)
    raise InvalidArgument("This is no URL of a video.", hint=_HINT, param=param)


def _may_be_fetched(url: str) -> bool:
    return url.partition(":")[0].lower() in {"http", "https", "file"} or url.startswith("/")


def image_in(data: str, media_type: str | None, param: str) -> Image:
    """Return the image that `data` holds in base64; raises InvalidArgument if it cannot be one."""
    _checked(media_type or "", "image", param)
    return Image(_decoded(data, param), param=param)


def sound_in(sound: InputAudio, param: str) -> Sound:
    """Return a sound; raises InvalidArgument if it cannot be one."""
    data = sound.data
    if data[:5].lower() == "data:":  # what clients of vLLM send, and forms
        data = _data_of(data, "audio", param)[0]
    kind = (sound.format or "").lower()
    if kind and kind not in SOUND_FORMATS:
        raise InvalidArgument(
            f"{sound.format!r} is no format of sounds that is read.",
            hint=f"Send one of {', '.join(SOUND_FORMATS)}.",
            param=f"{param}.format",
        )
    return Sound(_decoded(data, f"{param}.data"), kind or None, param)


def _data_of(url: str, what: str, param: str) -> tuple[str, str]:
    """Return the data of a data URL, in base64, and the media type it says to have."""
    head, comma, data = url.partition(",")
    kind, *options = head[len("data:") :].split(";")
    if not comma or not options or options[-1].strip().lower() != "base64":
        raise InvalidArgument("The data URL is not in base64.", hint=_HINT, param=param)
    return data, _checked(kind.strip().lower(), what, param)


def _checked(media_type: str, what: str, param: str) -> str:
    if media_type and media_type != "application/octet-stream" and not media_type.startswith(f"{what}/"):
        raise InvalidArgument(f"{media_type!r} is no {_WORDS[what]}.", hint=f"Send {_EXAMPLES[what]}, …", param=param)
    return media_type


def _decoded(data: str, param: str) -> bytes:
    try:
        lines = data.replace("\r", "").replace("\n", "")  # as MIME, base64(1) and Ollama have them
        return base64.b64decode(lines, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("The data is not base64.", hint="Encode the file's bytes.", param=param) from None


def message_of(role: Role, parts: Iterable[str | Attachment], joint: str = "") -> Message:
    """Return a message of texts and what stands among them; texts that follow each other are joined by `joint`."""
    merged: list[str | Attachment] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += joint + part
        elif part != "":
            merged.append(part)
    texts = [part for part in merged if isinstance(part, str)]
    return Message(role, joint.join(texts), parts=() if len(texts) == len(merged) else tuple(merged))
