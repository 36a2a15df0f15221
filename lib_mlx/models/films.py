"""From the content of a video file to frames. Any thread; whatever is wrong with a file is a clear error."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from lib_mlx.generation import FrameBounds

    Frame = NDArray[np.uint8]

FORMATS = ("MP4", "MOV", "WebM", "MKV", "AVI")
MAX_SIDE = 8192
MAX_SECONDS = 2 * 3600
_TIME_S = 30.0  # to decode one file
_FPS, _LEAST, _MOST = 2.0, 4, 32  # of what is taken, if nothing else is said; the first two are mlx-vlm's
_VERBOSITY = "OPENCV_FFMPEG_LOGLEVEL"


def decode(content: bytes, bounds: FrameBounds, shrink: Callable[[Frame, int], Frame], param: str) -> list[Frame]:
    """Return frames of a file, evenly spread, each of shape (height, width, 3), in RGB: those that mlx-vlm takes.

    Args:
        content: of the file.
        bounds: how many are taken.
        shrink: makes a frame, of so many, what is kept of it.
        param: the field it came from, for errors.

    Raises:
        InvalidArgument: it is no video of a known format, is damaged, too large, too long, or takes too long.
    """
    # Looked at first: FFmpeg reads lists of other files too, and fetches what they name.
    if not (content[4:8] == b"ftyp" or content[:4] == b"\x1aE\xdf\xa3" or content[8:12] == b"AVI "):
        raise InvalidArgument(
            "The video is of no known format.", hint=f"Send one of {', '.join(FORMATS)}.", param=param
        )
    with _opened(content, param) as film:
        total, rate = _facts(film, param)
        places = _places(total, rate, bounds)
        until = time.monotonic() + _TIME_S
        frames = []
        for place in places:
            film.set(1, place)  # CAP_PROP_POS_FRAMES
            there, frame = film.read()
            if not there:
                break
            frames.append(shrink(np.ascontiguousarray(frame[..., ::-1]), len(places)))
            if time.monotonic() > until:
                raise InvalidArgument(
                    f"The video takes more than {_TIME_S:g} s to decode.", hint="Make it smaller.", param=param
                )
    if not frames:
        raise _damaged(param)
    return frames


@contextlib.contextmanager
def _opened(content: bytes, param: str) -> Iterator[Any]:
    # By way of a file: given a stream of Python's, OpenCV 5.0 crashes when it is released.
    with _quiet(), tempfile.NamedTemporaryFile(prefix="lib_mlx-") as file:
        import cv2

        file.write(content)
        file.flush()
        film = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG)
        try:
            if not film.isOpened():
                raise _damaged(param)
            yield film
        except cv2.error:
            raise _damaged(param) from None
        finally:
            film.release()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have neither OpenCV nor FFmpeg write to the host's terminal."""
    cv2: Any = importlib.import_module("cv2")  # its stubs do not know of this
    level, given = cv2.utils.logging.getLogLevel(), os.environ.get(_VERBOSITY)
    cv2.utils.logging.setLogLevel(0)
    os.environ.setdefault(_VERBOSITY, "-8")
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
        if given is None:
            os.environ.pop(_VERBOSITY, None)


def _damaged(param: str) -> InvalidArgument:
    return InvalidArgument(
        "The video cannot be read.", hint="The file is damaged, or its codec unknown; send it again.", param=param
    )


def _facts(film: Any, param: str) -> tuple[int, float]:
    """Return how many frames there are, and how many a second."""
    wide, high, rate, total = (film.get(number) for number in (3, 4, 5, 7))  # CAP_PROP_FRAME_WIDTH and so on
    if not (1 <= wide <= MAX_SIDE and 1 <= high <= MAX_SIDE):
        raise InvalidArgument(
            f"The video is {wide:g} x {high:g} pixels; {MAX_SIDE} a side are read.", hint="Scale it.", param=param
        )
    rate = rate if math.isfinite(rate) and rate > 0 else 1.0
    if not 1 <= total <= MAX_SECONDS * rate:
        raise InvalidArgument(
            f"The video has {total:g} frames, {rate:g} a second; one that lasts up to {MAX_SECONDS} s is read.",
            hint="Send a part of it.",
            param=param,
        )
    return int(total), rate


def _places(total: int, rate: float, bounds: FrameBounds) -> list[int]:
    """Return the numbers of the frames that are taken: as mlx-vlm's `load_video` does it, an even number if it can."""
    most = _even(min(bounds.most or _MOST, total))
    wanted = _even(min(max(total / rate * (bounds.fps or _FPS), _LEAST), most))
    return [int(place) for place in np.linspace(0, total - 1, wanted).round()]


def _even(value: float) -> int:
    return max(math.floor(value / 2) * 2, 1)
