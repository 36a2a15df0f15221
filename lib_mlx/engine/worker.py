"""The engine thread: one per process, the only one that ever touches `mlx.core`, reused across loads.

MLX streams are thread-local, every thread that ran an operation leaves a native thread behind, and a thread
that ends after using MLX can abort the process (ml-explore/mlx#3619, #4347): so this thread is started once and
never ends. It is a daemon; at interpreter exit it is parked.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lib_mlx.engine.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.engine.event_stream import Batch, EventStream, Outlet

T = TypeVar("T")
_STALLED_S = 60.0  # a chunk of prompt of a large model on a slow CPU takes some ten seconds
log = logging.getLogger(__name__)


class Lane(Protocol):
    """Something the engine thread advances between commands: the scheduler of one loaded model."""

    @property
    def busy(self) -> bool:
        """Whether `step` has work to do."""

    def step(self) -> list[tuple[EventStream, Batch]]:
        """Do one bounded piece of work and return the events it made. Must not raise."""


class Worker:
    """Runs commands and lanes on the engine thread. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lanes: list[Lane] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.watchdog = Watchdog(_STALLED_S)

    def submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        """Run `work(*args)` on the engine thread, soon; the future has its result or error."""
        future: Future[T] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(*args))
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
                future.set_exception(error)

        self.post(command)
        return future

    def run(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work(*args)` on the engine thread and wait for its result."""
        if threading.current_thread() is self._thread:
            return work(*args)
        return self.submit(work, *args).result()

    def post(self, command: Callable[[], None]) -> None:
        """Run `command` on the engine thread before its next step; nobody waits for it. Must not raise."""
        self._start()
        self._inbox.put(command)

    def add(self, lane: Lane) -> None:
        """Advance `lane` from now on. Engine thread only."""
        self._lanes.append(lane)

    def discard(self, lane: Lane) -> None:
        """Stop advancing `lane`. Engine thread only."""
        if lane in self._lanes:
            self._lanes.remove(lane)

    def park(self, timeout_s: float = 3.0) -> None:
        """Stop for good, at interpreter exit: no step may run while the modules under it are torn down.

        Waits for the running step, `timeout_s` at most. Commands given afterwards never run.
        """
        parked = threading.Event()

        def wait_for_ever() -> None:
            parked.set()
            threading.Event().wait()

        if self._thread is not None:
            self._inbox.put(wait_for_ever)
            parked.wait(timeout_s)

    def breathe(self) -> None:
        """Between two slices of a long command: run what waits, and one step of every lane. Engine thread only."""
        self.watchdog.progress()
        self._drain(block=False)
        self._step()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="lib_mlx-engine", daemon=True)
                self._thread.start()
                self.watchdog.start()

    def _main(self) -> None:
        while True:
            self._drain(block=not any(lane.busy for lane in self._lanes))
            self._step()
            self.watchdog.progress()

    def _step(self) -> None:
        outbox: dict[Outlet, list[tuple[EventStream, Batch]]] = {}
        for lane in [lane for lane in self._lanes if lane.busy]:
            for stream, events in lane.step():
                outbox.setdefault(stream.outlet, []).append((stream, events))
        for outlet, deliveries in outbox.items():
            with contextlib.suppress(RuntimeError):  # the receiver's loop is closed: nobody is reading
                outlet.post(deliveries)

    def _drain(self, *, block: bool) -> None:
        """Run the commands that are waiting; with `block`, wait for the first."""
        while True:
            if block:
                self.watchdog.rest()
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                return
            if block:
                self.watchdog.work()
                block = False
            try:
                command()
            except BaseException:  # a panic in Rust is no Exception
                log.exception("a command failed on the engine thread")
            self.watchdog.progress()
            del command  # what it refers to may be a model that is to be freed


_worker: Worker | None = None
_worker_lock = threading.Lock()


def get_worker() -> Worker:
    """Return the process's engine thread, parked at interpreter exit; a forked child gets one of its own."""
    global _worker  # noqa: PLW0603 - one per process is the point
    with _worker_lock:
        if _worker is None:
            _worker = Worker()
            atexit.register(_worker.park)
            os.register_at_fork(after_in_child=_forget)
        return _worker


def _forget() -> None:
    global _worker, _worker_lock
    _worker, _worker_lock = None, threading.Lock()
