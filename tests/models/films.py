"""Films for tests."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import cv2
import numpy as np

_CODECS = {"mp4": "mp4v", "avi": "MJPG"}


@cache
def film(kind: str = "avi", size: tuple[int, int] = (160, 120), count: int = 30, rate: float = 10.0) -> bytes:
    """The content of a file whose frames grow brighter and bluer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film.{kind}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*_CODECS[kind]), rate, size)
        for number in range(count):
            frame = np.full((size[1], size[0], 3), number * 255 // count, np.uint8)
            frame[: size[1] // 2, :, 0] = 255 - number * 4 % 256
            writer.write(frame)
        writer.release()
        return path.read_bytes()
