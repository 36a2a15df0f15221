"""Handles, the life of models and servers: the one way in for every host (C, Python, the command line)."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidHandle, LibMlxError
from lib_mlx.handle import STOP_DEADLINE_S
from lib_mlx.in_process import InProcessHandle
from lib_mlx.logs import open_log
from lib_mlx.threads import run_beside

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.config import LoadConfig, ServerConfig
    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.handle import Handle
    from lib_mlx.status import Status, UnloadReport


class Runtime:
    """The models and servers of this process. Every method may be called from any thread, at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._telling = threading.RLock()  # one change at a time: the last that a listener hears is how it is
        self._handles: dict[int, Handle] = {}
        self._next = 1
        self._listeners: list[Callable[[int, Status | None], None]] = []
        get_worker().watchdog.subscribe(self._set_stalled)

    def subscribe(self, listener: Callable[[int, Status | None], None]) -> Callable[[], None]:
        """Have `listener(handle, status)` called at every change, None when the handle is gone; return what ends that.

        Called on whatever thread made the change: it must be quick and must not raise.
        """
        with self._lock:
            self._listeners = [*self._listeners, listener]

        def end() -> None:
            with self._lock:
                self._listeners = [other for other in self._listeners if other is not listener]

        return end

    def load(self, config: LoadConfig) -> Status:
        """Load a model. Blocks until it is ready; with `config.wait` false, returns while it is loading.

        Raises:
            InvalidArgument: the log file cannot be written.
            LibMlxError: the model cannot be loaded. (Without waiting, the handle's state becomes `failed`.)
        """
        log = open_log(config.log_file, config.log_level) if config.log_file is not None else None
        with self._lock:
            handle = self._new_handle(self._next, config)
            self._handles[handle.number] = handle
            self._next += 1
        handle.log = log
        self.changed(handle)
        try:
            handle.load()
        except BaseException:  # no thread could be started for it
            handle.gone()
            _close_log(handle)
            raise
        if not config.wait:
            return handle.status()
        handle.loaded.wait()
        if handle.error is not None:
            handle.gone()
            _close_log(handle)
            raise handle.error.copy()
        return handle.status()

    def _new_handle(self, number: int, config: LoadConfig) -> Handle:
        if config.isolation == "process":
            from lib_mlx.isolation import IsolatedHandle

            return IsolatedHandle(number, config, self)
        return InProcessHandle(number, config, self)

    def status(self, number: int) -> Status:
        """Return the present state; never blocks on a load."""
        return self._find(number).status()

    def statuses(self) -> list[Status]:
        """Return the present state of all handles."""
        with self._lock:
            handles = list(self._handles.values())
        return [handle.status() for handle in handles]

    def engine(self, number: int) -> EngineModel:
        """Return the model itself, for use without a server.

        Raises:
            InvalidHandle, ModelLoading: there is none, or not yet.
            UnsupportedFeature: it runs in a process of its own.
        """
        return self._find(number).engine()

    def start_server(self, number: int, config: ServerConfig) -> Status:
        """Serve the model; blocks until connections are accepted. A running server's status is returned as it is.

        Raises:
            InvalidHandle, ModelLoading, AddressInUse, ServerStartFailed, InvalidArgument: it cannot be served.
        """
        return self._find(number).start_server(config)

    def stop_server(self, number: int, deadline_s: float = STOP_DEADLINE_S) -> Status:
        """End the streams with their terminal event and close the server. Without a server, nothing happens."""
        handle = self._find(number)
        handle.stop_server(deadline_s)
        return handle.status()

    def suspend(self, number: int) -> Status:
        """Evaluate nothing more for this model, and the further ones of its server, until `resume`.

        Requests wait, also those under way, or fail, as the server is configured.
        """
        return self._set_suspended(number, suspended=True)

    def resume(self, number: int) -> Status:
        """Go on where `suspend` stopped."""
        return self._set_suspended(number, suspended=False)

    def unload(self, number: int, deadline_s: float = STOP_DEADLINE_S) -> UnloadReport:
        """Stop the server, cancel a load in progress, free the memory. The handle is invalid afterwards."""
        return _unload(self._find(number), deadline_s)

    def shutdown(self, deadline_s: float = 3.0) -> None:
        """Unload everything, within about `deadline_s`. Idempotent; a later load works again."""
        with self._lock:
            handles = list(self._handles.values())
        until = time.monotonic() + deadline_s
        waits = [
            run_beside(f"lib_mlx-unload-{handle.number}", partial(_unload_quietly, handle, deadline_s))
            for handle in handles
        ]
        for wait in waits:
            wait(max(0.0, until - time.monotonic()))

    def _set_suspended(self, number: int, *, suspended: bool) -> Status:
        handle = self._find(number)
        handle.set_suspended(suspended=suspended)
        return handle.status()

    def _set_stalled(self, stalled: bool) -> None:
        with self._lock:
            handles = list(self._handles.values())
        for handle in handles:
            handle.set_stalled(stalled)

    def _find(self, number: int) -> Handle:
        with self._lock:
            handle = self._handles.get(number)
        if handle is None:
            raise InvalidHandle(f"No model is loaded under handle {number}.", hint="Use the handle load_model gave.")
        return handle

    def forget(self, handle: Handle) -> None:
        """Know a handle no more; called by the handle itself."""
        with self._telling:
            with self._lock:
                self._handles.pop(handle.number, None)
                listeners = self._listeners
            for listener in listeners:
                listener(handle.number, None)

    def changed(self, handle: Handle) -> None:
        """Tell the listeners of a handle's present state; called by the handle itself."""
        with self._telling:
            with self._lock:
                if handle.number not in self._handles:
                    return
                listeners = self._listeners
            status = handle.status()
            for listener in listeners:
                listener(handle.number, status)


def _unload(handle: Handle, deadline_s: float) -> UnloadReport:
    report = handle.unload(deadline_s)
    _close_log(handle)
    return report


def _unload_quietly(handle: Handle, deadline_s: float) -> None:
    with contextlib.suppress(LibMlxError):
        _unload(handle, deadline_s)


def _close_log(handle: Handle) -> None:
    if handle.log is not None:
        handle.log.close()


_runtime: Runtime | None = None
_runtime_lock = threading.Lock()


def get_runtime() -> Runtime:
    """Return the process's runtime."""
    global _runtime  # noqa: PLW0603 - one per process is the point
    with _runtime_lock:
        if _runtime is None:
            get_worker()  # registers its own exit first and so is parked last, when nothing is left to do
            _runtime = Runtime()
            atexit.register(_runtime.shutdown)
        return _runtime
