"""Notices when the engine thread has not come to the end of a piece of its work for a long time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.25  # how soon the end of a stall is noticed


class Watchdog:
    """A thread that sleeps while the engine does. `limit_s` is how long one step or command may take.

    The engine thread calls `work`, `progress` and `rest`; all else may be called from any thread.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.stalled = False
        """Whether the work in progress has taken longer than `limit_s`."""
        self._working = threading.Event()
        self._steps = 0
        self._lock = threading.Lock()
        self._listeners: list[Callable[[bool], None]] = []

    def start(self) -> None:
        """Begin to watch, for the process's life."""
        threading.Thread(target=self._main, name="lib_mlx-watchdog", daemon=True).start()

    def subscribe(self, listener: Callable[[bool], None]) -> None:
        """Have `listener(stalled)` called at every change, on the watchdog's thread; it must not raise."""
        with self._lock:
            self._listeners.append(listener)

    def work(self) -> None:
        """There is work again."""
        self._working.set()

    def progress(self) -> None:
        """A piece of it is done."""
        self._steps += 1

    def rest(self) -> None:
        """There is none."""
        self._steps += 1
        self._working.clear()

    def _main(self) -> None:
        pause = threading.Event()
        while True:
            self._working.wait()
            seen = self._steps
            pause.wait(self.limit_s)
            if self._steps != seen or not self._working.is_set():
                continue
            self._tell(stalled=True)
            while self._steps == seen:
                pause.wait(_POLL_S)
            self._tell(stalled=False)

    def _tell(self, *, stalled: bool) -> None:
        self.stalled = stalled
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener(stalled)
