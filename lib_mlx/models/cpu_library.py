"""The C code that makes MLX fast on the CPU under Linux (native/blas.h), if it was built."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

PATH = Path(__file__).resolve().parent.parent / "_cpu.so"


@functools.cache
def load() -> ctypes.CDLL | None:
    """Return the library; None where there is none: on other systems and processors, or in a source tree."""
    try:
        return ctypes.CDLL(str(PATH))
    except OSError:
        return None
