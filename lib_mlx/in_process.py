"""A model whose engine and server run in this process.

```
loading ──► ready ⇄ suspended, stalled        stopped ──► starting ──► running ──► stopping ──► stopped
   │          └──► unloading ──► gone
   └──► failed ──► gone
```
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import Internal, InvalidHandle, LibMlxError, LoadCancelled
from lib_mlx.handle import Handle
from lib_mlx.status import ServerStatus, UnloadReport
from lib_mlx.threads import run_beside

if TYPE_CHECKING:
    from lib_mlx.config import LoadConfig, ServerConfig
    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.handle import Owner
    from lib_mlx.registry import Registry
    from lib_mlx.server.listener import Listener
    from lib_mlx.status import ModelState, ModelStatus, Status

log = logging.getLogger(__name__)


class InProcessHandle(Handle):
    """One model of this process; see `Handle`."""

    def __init__(self, number: int, config: LoadConfig, owner: Owner) -> None:
        super().__init__(number, config, owner)
        self.listener: Listener | None = None
        self._registry: Registry | None = None
        self._created = int(time.time())
        self._server_lock = threading.Lock()  # one start or stop at a time; others wait for its outcome
        self._suspension_lock = threading.Lock()  # one at a time: engine, status and server end up alike
        self._cancelled = threading.Event()
        self._abandoned = False
        self._engine: EngineModel | None = None

    # Loading

    def load(self) -> None:
        """Load on a thread of its own."""
        threading.Thread(target=self._load, name=f"lib_mlx-load-{self.number}", daemon=True).start()

    def _load(self) -> None:
        begun = time.monotonic()
        log.info("handle %d: loading %s", self.number, self.config.model_path)
        try:
            engine = self._open()
        except LibMlxError as error:
            log.info("handle %d: the load failed: %s: %s", self.number, error.code, error)
            self._loaded(error=error.copy())
        except BaseException as error:
            # Where the interpreter ends meanwhile, imports and threads fail in ways of their own.
            level = logging.DEBUG if self._cancelled.is_set() else logging.ERROR
            log.log(level, "handle %d: the load failed", self.number, exc_info=True)
            self._loaded(error=Internal(f"The load failed: {type(error).__name__}: {error}."))
        else:
            log.info("handle %d: ready after %.2f s", self.number, time.monotonic() - begun)
            self._loaded(engine=engine)

    def _open(self) -> EngineModel:
        from lib_mlx.engine.loading import open_model

        return open_model(
            self.config.model_path,
            self.config,
            revision=self.config.revision,
            progress=self.progressed,
            cancelled=self._cancelled.is_set,
        )

    def _loaded(self, *, engine: EngineModel | None = None, error: LibMlxError | None = None) -> None:
        with self.lock:
            abandoned = self._abandoned
            if not abandoned:
                self._engine, self.error = engine, error
            if self.model.status == "loading":
                self.model = _loaded_status(self.model, engine, error)
        if abandoned and engine is not None:
            engine.unload()
        elif engine is not None:
            engine.watch_encoders(self._encoders_loaded)
        self.publish()
        self.loaded.set()

    def _encoders_loaded(self) -> None:
        with self.lock:
            self.model = replace(self.model, encoders="loaded")
        self.publish()

    def engine(self) -> EngineModel:
        """Return the model."""
        with self.lock:
            if self._engine is None:
                self.refuse_unless_loaded()
            if self._engine is None:
                raise InvalidHandle(f"The model of handle {self.number} is being unloaded.")
            return self._engine

    # Serving

    def start_server(self, config: ServerConfig) -> Status:
        """Serve the model; see `Runtime.start_server`."""
        self.engine()  # a model that is not ready is refused before the imports, which take their time
        from lib_mlx.registry import ModelSpec
        from lib_mlx.registry.sources import new_registry
        from lib_mlx.server.listener import Listener

        with self._server_lock:
            if self.listener is not None:
                return self.status()
            engine = self.engine()
            if self.model.status == "unloading":  # which waits for the lock, to stop what is running by then
                raise InvalidHandle(f"The model of handle {self.number} is being unloaded.")
            name = config.model_id or self.model.model_id
            if config.api_key == "auto":
                config = config.model_copy(update={"api_key": secrets.token_urlsafe(32)})
            registry = new_registry(config)
            aliases = frozenset({self.model.model_id, self.config.model_path})
            spec = ModelSpec(name, self.config.model_path, self.config, aliases=aliases, pinned=True)
            registry.add_loaded(spec, engine, self._created)
            self.set_server(ServerStatus("starting"))
            try:
                listener = Listener(registry, config, self._owner)
                listener.start()
            except BaseException:
                self.set_server(ServerStatus("stopped"))
                raise
            self.listener, self._registry = listener, registry
            if self.model.status == "suspended":
                listener.suspend()
            running = ServerStatus("running", listener.host, listener.port, listener.base_url, name, listener.uds)
            self.set_server(running)
            log.info("handle %d: serving at %s", self.number, listener.uds or listener.base_url)
            # The key is told once, to whoever started the server, and stands in no status.
            return replace(self.status(), server=replace(running, api_key=config.api_key))

    def stop_server(self, deadline_s: float) -> None:
        """End the streams with their terminal event and close the server."""
        with self._server_lock:
            listener = self.listener
            if listener is None:
                return
            with self.lock:
                running = self.server
            self.set_server(replace(running, status="stopping"))
            until = time.monotonic() + deadline_s
            listener.stop(deadline_s)
            if self._registry is not None:  # whose models are freed later where the engine is busy for long
                closing = run_beside("lib_mlx-close", self._registry.close)
                closing(max(1.0, until - time.monotonic()))
            self.listener = self._registry = None
            self.set_server(ServerStatus("stopped"))
            log.info("handle %d: the server has stopped", self.number)

    def set_suspended(self, *, suspended: bool) -> None:
        """Suspend or resume the model, at once, and the further ones of its server."""
        with self._suspension_lock:
            engine = self.engine()
            engine.suspend() if suspended else engine.resume()
            with self.lock:
                if self.model.status in {"ready", "suspended", "stalled"}:
                    self.model = replace(self.model, status="suspended" if suspended else "ready")
            self.publish()
            with self._server_lock:
                if self.listener is not None:
                    self.listener.suspend() if suspended else self.listener.resume()
        log.info("handle %d: %s", self.number, "suspended" if suspended else "resumed")

    def set_stalled(self, stalled: bool) -> None:
        """All models share the engine thread: they stand still together."""
        states: tuple[ModelState, ModelState] = ("ready", "stalled")
        before, after = states if stalled else states[::-1]
        with self.lock:
            if self.model.status != before:
                return
            self.model = replace(self.model, status=after)
        self.publish()
        log.warning("handle %d: the engine %s", self.number, "stands still" if stalled else "goes on")

    # Ending

    def unload(self, deadline_s: float) -> UnloadReport:
        """Stop the server, cancel a load in progress, free the memory."""
        from lib_mlx.engine.heap import release
        from lib_mlx.memory import resident_bytes

        before = resident_bytes()
        self._cancelled.set()
        with self.lock:
            if self.model.status == "unloading":
                raise InvalidHandle(f"The model of handle {self.number} is being unloaded already.")
            self.model = replace(self.model, status="unloading")
        self.publish()
        self.stop_server(deadline_s)
        self.loaded.wait(deadline_s)
        with self.lock:
            self._abandoned = True  # a load that has not noticed yet frees what it loaded itself
            engine, self._engine = self._engine, None
            self.error = self.error or LoadCancelled("The model was unloaded.")
        self.gone()
        if engine is not None:
            engine.unload()
            del engine
            get_worker().run(release)  # the tokenizer went with the last reference
        report = UnloadReport(before, resident_bytes())
        log.info("handle %d: unloaded, %d to %d MB", self.number, before >> 20, report.after_bytes >> 20)
        return report


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
            encoders=engine.encoders,
        )
    return replace(model, status="failed", stage="", error=error.to_json() if error else None)
