"""What a process holds, and what it can have."""

from __future__ import annotations

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
