"""What a process holds and giving it back."""

from __future__ import annotations

import ctypes
import gc
import sys

import psutil

from lib_mlx import control_groups
from lib_mlx.errors import InsufficientMemory


def resident_bytes() -> int:
    """Return the process's resident memory in bytes."""
    return int(psutil.Process().memory_info().rss)


def total_bytes() -> int:
    """Return the machine's memory in bytes."""
    return int(psutil.virtual_memory().total)


def check_fits(need_bytes: int, what: str) -> None:
    """Refuse what cannot fit before it drives the machine into swapping or the process into an abort.

    Raises:
        InsufficientMemory: less than `need_bytes` is available, with both figures.
    """
    available = available_bytes()
    if need_bytes > available:
        raise InsufficientMemory(
            f"{what} needs {need_bytes / 1e9:.2f} GB; {available / 1e9:.2f} GB are available.",
            hint="Close other programs, unload models, or use a smaller or more strongly quantised model.",
        )


def available_bytes() -> int:
    """Return the memory that this process can have without swapping, in bytes."""
    available = int(psutil.virtual_memory().available)
    allowed = control_groups.available_bytes() if sys.platform == "linux" else None
    return available if allowed is None else min(available, allowed)


def release() -> None:
    """Return freed memory to the system. Engine thread only, after the last reference is gone."""
    import mlx.core as mx

    gc.collect()
    # Each layer draws from the thread's random state when it is made, and for what is loaded that is never computed:
    # a chain of 1 MB per model would stay. (Requests have states of their own.)
    mx.random.seed(0)
    mx.synchronize()
    mx.clear_cache()
    if sys.platform == "linux":
        # glibc keeps freed pages resident unless it is told; musl has no such call.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
