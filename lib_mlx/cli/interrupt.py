"""Ctrl-C while something long goes on."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def stopped_by_ctrl_c() -> threading.Event:
    """Return what the first Ctrl-C sets; the second one ends the program. Main thread only."""
    stopped = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, on_signal)
    return stopped
