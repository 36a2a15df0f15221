"""Handles, the life of models and servers: the one way in for every host (C, Python, the command line).

```
loading ──► ready ⇄ suspended, stalled        stopped ──► starting ──► running ──► stopping ──► stopped
   │          └──► unloading ──► gone
   └──► failed ──► gone
```
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import secrets
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import (
    Internal,
    InvalidHandle,
    LibMlxError,
    LoadCancelled,
    ModelLoading,
)
from lib_mlx.status import ModelStatus, ServerStatus, Status, UnloadReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.config import LoadConfig, ServerConfig
    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.registry import Registry
    from lib_mlx.server.listener import Listener
    from lib_mlx.status import ModelState

log = logging.getLogger(__name__)

STOP_DEADLINE_S = 5.0


class _Handle:
    """One loaded (or loading) model. `lock` guards the fields; it is never held while work is done."""

    def __init__(self, number: int, config: LoadConfig) -> None:
        self.number = number
        self.config = config
        self.lock = threading.Lock()
        self.server_lock = threading.Lock()  # one start or stop at a time; others wait for its outcome
        self.loaded = threading.Event()  # the load has ended, well or not
        self.cancelled = threading.Event()
        self.created = int(time.time())
        self.model = ModelStatus("loading", config.model_id or Path(config.model_path).name, config.model_path)
        self.server = ServerStatus("stopped")
        self.abandoned = False
        self.error: LibMlxError | None = None
        self.engine: EngineModel | None = None
        self.listener: Listener | None = None
        self.registry: Registry | None = None

    def status(self) -> Status:
        with self.lock:
            return Status(self.number, self.model, self.server)


class Runtime:
    """The models and servers of this process. Every method may be called from any thread, at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: dict[int, _Handle] = {}
        self._next = 1
        self._listeners: list[Callable[[int, Status | None], None]] = []
        get_worker().watchdog.subscribe(self._set_stalled)

    def subscribe(self, listener: Callable[[int, Status | None], None]) -> None:
        """Have `listener(handle, status)` called at every change; None when the handle is gone.

        Called on whatever thread made the change: it must be quick and must not raise.
        """
        with self._lock:
            self._listeners.append(listener)

    def load(self, config: LoadConfig) -> Status:
        """Load a model. Blocks until it is ready; with `config.wait` false, returns while it is loading.

        Raises:
            LibMlxError: the model cannot be loaded. (Without waiting, the handle's state becomes `failed`.)
        """
        with self._lock:
            handle = _Handle(self._next, config)
            self._handles[handle.number] = handle
            self._next += 1
        self._publish(handle)
        threading.Thread(target=self._load, args=(handle,), name=f"lib_mlx-load-{handle.number}", daemon=True).start()
        if not config.wait:
            return handle.status()
        handle.loaded.wait()
        if handle.error is not None:
            self._forget(handle)
            raise handle.error.copy()
        return handle.status()

    def status(self, number: int) -> Status:
        """Return the present state; never blocks on a load."""
        return self._find(number).status()

    def engine(self, number: int) -> EngineModel:
        """Return the model itself, for use without a server.

        Raises:
            InvalidHandle, ModelLoading: there is none, or not yet.
        """
        handle = self._find(number)
        with handle.lock:
            if handle.engine is None:
                if handle.error is not None:
                    raise handle.error.copy()
                raise ModelLoading(
                    "The model is still loading.", hint="Poll server_status until it is ready.", retry_after=1
                )
            return handle.engine

    def start_server(self, number: int, config: ServerConfig) -> Status:
        """Serve the model; blocks until connections are accepted. A running server's status is returned as it is.

        Raises:
            InvalidHandle, ModelLoading, AddressInUse, ServerStartFailed, InvalidArgument: it cannot be served.
        """
        self.engine(number)  # a model that is not ready is refused before the imports, which take their time
        from lib_mlx.registry import ModelSpec
        from lib_mlx.registry.sources import new_registry
        from lib_mlx.server.listener import Listener

        handle = self._find(number)
        with handle.server_lock:
            if handle.listener is not None:
                return handle.status()
            engine = self.engine(number)
            if handle.model.status == "unloading":  # which waits for the lock, to stop what is running by then
                raise InvalidHandle(f"The model of handle {number} is being unloaded.")
            name = config.model_id or handle.model.model_id
            if config.api_key == "auto":
                config = config.model_copy(update={"api_key": secrets.token_urlsafe(32)})
            registry = new_registry(config)
            aliases = frozenset({handle.model.model_id, handle.config.model_path})
            spec = ModelSpec(name, handle.config.model_path, handle.config, aliases=aliases, pinned=True)
            registry.add_loaded(spec, engine, handle.created)
            self._set_server(handle, ServerStatus("starting"))
            try:
                listener = Listener(registry, config)
                listener.start()
            except BaseException:
                self._set_server(handle, ServerStatus("stopped"))
                raise
            handle.listener, handle.registry = listener, registry
            running = ServerStatus("running", listener.host, listener.port, listener.base_url, name, listener.uds)
            self._set_server(handle, running)
            # The key is told once, to whoever started the server, and stands in no status.
            return replace(handle.status(), server=replace(running, api_key=config.api_key))

    def stop_server(self, number: int, deadline_s: float = STOP_DEADLINE_S) -> Status:
        """End the streams with their terminal event and close the server. Without a server, nothing happens."""
        handle = self._find(number)
        self._stop(handle, deadline_s)
        return handle.status()

    def suspend(self, number: int) -> Status:
        """Evaluate nothing more for this model until `resume`; requests wait, also those under way."""
        return self._set_suspended(number, suspended=True)

    def resume(self, number: int) -> Status:
        """Go on where `suspend` stopped."""
        return self._set_suspended(number, suspended=False)

    def unload(self, number: int, deadline_s: float = STOP_DEADLINE_S) -> UnloadReport:
        """Stop the server, cancel a load in progress, free the memory. The handle is invalid afterwards."""
        handle = self._find(number)
        return self._unload(handle, deadline_s)

    def shutdown(self, deadline_s: float = 3.0) -> None:
        """Unload everything, within about `deadline_s`. Idempotent; a later load works again."""
        with self._lock:
            handles = list(self._handles.values())
        threads = [
            threading.Thread(target=self._unload_quietly, args=(handle, deadline_s), daemon=True) for handle in handles
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + deadline_s
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    # Loading

    def _load(self, handle: _Handle) -> None:
        try:
            engine = self._load_engine(handle)
        except LibMlxError as error:
            self._loaded(handle, error=error.copy())
        except Exception as error:
            # Where the interpreter ends meanwhile, imports and threads fail in ways of their own.
            level = logging.DEBUG if handle.cancelled.is_set() else logging.ERROR
            log.log(level, "loading %s failed", handle.config.model_path, exc_info=True)
            self._loaded(handle, error=Internal(f"The load failed: {type(error).__name__}: {error}."))
        else:
            self._loaded(handle, engine=engine)

    def _load_engine(self, handle: _Handle) -> EngineModel:
        from lib_mlx.engine.loading import open_model

        config = handle.config
        return open_model(
            config.model_path,
            config,
            revision=config.revision,
            progress=lambda fraction, stage: self._progress(handle, fraction, stage),
            cancelled=handle.cancelled.is_set,
        )

    def _loaded(self, handle: _Handle, *, engine: EngineModel | None = None, error: LibMlxError | None = None) -> None:
        with handle.lock:
            abandoned = handle.abandoned
            if not abandoned:
                handle.engine, handle.error = engine, error
            if handle.model.status == "loading":
                handle.model = _loaded_status(handle.model, engine, error)
        if abandoned and engine is not None:
            engine.unload()
        self._publish(handle)
        handle.loaded.set()

    def _progress(self, handle: _Handle, fraction: float, stage: str) -> None:
        with handle.lock:
            if handle.model.status != "loading":
                return
            handle.model = replace(handle.model, progress=round(fraction, 4), stage=stage)
        self._publish(handle)

    # Ending

    def _unload(self, handle: _Handle, deadline_s: float) -> UnloadReport:
        from lib_mlx.engine.heap import release
        from lib_mlx.memory import resident_bytes

        before = resident_bytes()
        handle.cancelled.set()
        with handle.lock:
            if handle.model.status == "unloading":
                raise InvalidHandle(f"The model of handle {handle.number} is being unloaded already.")
            handle.model = replace(handle.model, status="unloading")
        self._publish(handle)
        self._stop(handle, deadline_s)
        handle.loaded.wait(deadline_s)
        with handle.lock:
            handle.abandoned = True  # a load that has not noticed yet frees what it loaded itself
            engine, handle.engine = handle.engine, None
            handle.error = handle.error or LoadCancelled("The model was unloaded.")
        self._forget(handle)
        if engine is not None:
            engine.unload()
            del engine
            get_worker().run(release)  # the tokenizer went with the last reference
        return UnloadReport(before, resident_bytes())

    def _unload_quietly(self, handle: _Handle, deadline_s: float) -> None:
        with contextlib.suppress(LibMlxError):
            self._unload(handle, deadline_s)

    def _stop(self, handle: _Handle, deadline_s: float) -> None:
        with handle.server_lock:
            listener = handle.listener
            if listener is None:
                return
            with handle.lock:
                running = handle.server
            self._set_server(handle, replace(running, status="stopping"))
            until = time.monotonic() + deadline_s
            listener.stop(deadline_s)
            if handle.registry is not None:  # whose models are freed later where the engine is busy for long
                closing = threading.Thread(target=handle.registry.close, name="lib_mlx-close", daemon=True)
                closing.start()
                closing.join(max(1.0, until - time.monotonic()))
            handle.listener = handle.registry = None
            self._set_server(handle, ServerStatus("stopped"))

    # State

    def _set_suspended(self, number: int, *, suspended: bool) -> Status:
        engine, handle = self.engine(number), self._find(number)
        engine.suspend() if suspended else engine.resume()
        with handle.lock:
            if handle.model.status in {"ready", "suspended", "stalled"}:
                handle.model = replace(handle.model, status="suspended" if suspended else "ready")
        self._publish(handle)
        return handle.status()

    def _set_stalled(self, stalled: bool) -> None:
        """All models share the engine thread: they stand still together."""
        with self._lock:
            handles = list(self._handles.values())
        states: tuple[ModelState, ModelState] = ("ready", "stalled")
        before, after = states if stalled else states[::-1]
        for handle in handles:
            with handle.lock:
                if handle.model.status == before:
                    handle.model = replace(handle.model, status=after)
            self._publish(handle)

    def _set_server(self, handle: _Handle, server: ServerStatus) -> None:
        with handle.lock:
            handle.server = server
        self._publish(handle)

    def _find(self, number: int) -> _Handle:
        with self._lock:
            handle = self._handles.get(number)
        if handle is None:
            raise InvalidHandle(f"No model is loaded under handle {number}.", hint="Use the handle load_model gave.")
        return handle

    def _forget(self, handle: _Handle) -> None:
        with self._lock:
            self._handles.pop(handle.number, None)
            listeners = list(self._listeners)
        for listener in listeners:
            listener(handle.number, None)

    def _publish(self, handle: _Handle) -> None:
        with self._lock:
            if handle.number not in self._handles:
                return
            listeners = list(self._listeners)
        status = handle.status()
        for listener in listeners:
            listener(handle.number, status)


def _loaded_status(model: ModelStatus, engine: EngineModel | None, error: LibMlxError | None) -> ModelStatus:
    if engine is not None:
        return replace(
            model,
            status="ready",
            progress=1.0,
            stage="",
            context_length=engine.context_length,
            device=engine.device,
            weights=engine.weights,
            blas=engine.blas,
        )
    return replace(model, status="failed", stage="", error=error.to_json() if error else None)


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
