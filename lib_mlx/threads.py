"""Threads that are started wherever they can be."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def run_beside(name: str, work: Callable[[], object]) -> Callable[[float], None]:
    """Call `work` on a daemon thread and return what waits for its end, so many seconds at most.

    Where no thread can be started, as at the exit of Python 3.12, `work` is called here and now.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        work()
        return lambda _seconds: None
    return thread.join
