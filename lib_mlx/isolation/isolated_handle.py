"""A model whose engine and server run in a child process; the child never outlives this one."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil

from lib_mlx.errors import InvalidHandle, LibMlxError, UnsupportedFeature, error_from_json
from lib_mlx.handle import Handle
from lib_mlx.isolation.child_process import ChildProcess
from lib_mlx.memory import resident_bytes
from lib_mlx.operations import Operation
from lib_mlx.status import ModelStatus, ServerStatus, Status, UnloadReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.config import LoadConfig, ServerConfig
    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.errors import EngineDied
    from lib_mlx.server.listener import Listener
    from lib_mlx.server.news import Handles

log = logging.getLogger(__name__)

_CHILDS = 1  # the handle of the only model there


class IsolatedHandle(Handle):
    """One model of a child process; see `Handle`.

    When the child dies, the model has failed (`engine_died`), and its server's address answers so.
    """

    def __init__(
        self,
        number: int,
        config: LoadConfig,
        tell: Callable[[Handle], None],
        forget: Callable[[Handle], None],
        handles: Handles,
    ) -> None:
        super().__init__(number, config, tell, forget)
        self._handles = handles
        self._child = ChildProcess(f"lib_mlx-child-{number}", on_status=self._take, on_death=self._died)
        self._served: ServerConfig | None = None
        self._standin: Listener | None = None
        self._server_lock = threading.Lock()
        self._unloading = False

    @property
    def pid(self) -> int | None:
        """The child's process id, while it runs."""
        return self._child.pid

    def load(self) -> None:
        """Start the child, and have it load."""
        try:
            self._child.start()
        except LibMlxError as error:
            self._failed(error)
            return
        log.info("handle %d: process %s loads %s", self.number, self._child.pid, self.config.model_path)
        threading.Thread(target=self._load, name=f"lib_mlx-load-{self.number}", daemon=True).start()

    def _load(self) -> None:
        values = self.config.model_dump(exclude_unset=True)
        values |= {"isolation": "none", "wait": False}
        try:
            self._call(Operation.LOAD_MODEL, json.dumps(values))
        except LibMlxError as error:
            self._failed(error)

    def engine(self) -> EngineModel:
        """Raise: the model is not in this process."""
        with self.lock:
            self.refuse_unless_loaded()
        raise UnsupportedFeature(
            "The model runs in a process of its own.", hint="Start its server and ask that.", param="isolation"
        )

    def start_server(self, config: ServerConfig) -> Status:
        """Have the child serve the model."""
        with self._server_lock:
            with self.lock:
                self.refuse_unless_loaded()
            started = self._call(Operation.START_SERVER, config.model_dump_json(exclude_unset=True))["server"]
            running = ServerStatus(**started)
            if running.api_key is not None:  # "auto" has become one, which the address goes on asking for
                config = config.model_copy(update={"api_key": running.api_key})
            self._served = self._served or config
        return replace(self.status(), server=running)

    def stop_server(self, deadline_s: float) -> None:
        """Have the child stop it."""
        with self._server_lock:
            standin, self._standin = self._standin, None
            self._served = None
            if standin is not None:
                standin.stop(deadline_s)
                self.set_server(ServerStatus("stopped"))
            elif self._child.pid is not None and self.loaded.is_set() and self.error is None:
                self._call(Operation.STOP_SERVER)

    def set_suspended(self, *, suspended: bool) -> None:
        """Have the child suspend or resume."""
        with self.lock:
            self.refuse_unless_loaded()
        self._call(Operation.SUSPEND if suspended else Operation.RESUME)

    def set_stalled(self, stalled: bool) -> None:
        """Nothing: it is this process's engine that stalls, and the child tells of its own."""

    def unload(self, deadline_s: float) -> UnloadReport:
        """End the child, kindly or not."""
        before = resident_bytes() + self._childs_bytes()
        with self.lock:
            if self._unloading:
                raise InvalidHandle(f"The model of handle {self.number} is being unloaded already.")
            self._unloading = True
            self.model = replace(self.model, status="unloading")
        self.publish()
        until = time.monotonic() + deadline_s
        if self._standin is not None:
            self.stop_server(deadline_s)
        leaving = threading.Thread(target=self._leave, name=f"lib_mlx-unload-{self.number}", daemon=True)
        leaving.start()
        leaving.join(deadline_s)
        self._child.end(max(0.5, until - time.monotonic()))
        self.loaded.set()
        self.gone()
        log.info("handle %d: unloaded", self.number)
        return UnloadReport(before, resident_bytes())

    def _leave(self) -> None:
        """Let the child end its streams and write what it keeps."""
        try:
            self._child.call(Operation.UNLOAD_MODEL, _CHILDS)
        except LibMlxError as error:
            log.debug("handle %d: %s", self.number, error)

    def _call(self, operation: Operation, config: str | None = None) -> dict[str, Any]:
        answer = self._child.call(operation, _CHILDS, config)
        if not answer["ok"]:
            raise error_from_json(answer["error"])
        return answer

    def _childs_bytes(self) -> int:
        try:
            return int(psutil.Process(self._child.pid).memory_info().rss) if self._child.pid else 0
        except psutil.Error:
            return 0

    # What the child tells

    def _take(self, told: dict[str, Any]) -> None:
        model, server = ModelStatus(**told["model"]), ServerStatus(**told["server"])
        with self.lock:
            if self._unloading:
                return
            self.model, self.server = model, server
            if model.status == "failed" and model.error is not None:
                self.error = error_from_json(model.error)
        self.publish()
        if model.status == "failed":  # there is nothing left to do for it
            self._child.dismiss()
        if model.status != "loading":
            self.loaded.set()

    def _died(self, death: EngineDied) -> None:
        if self._unloading or self.error is not None:
            return
        log.error("handle %d: %s", self.number, death.message)
        with self._server_lock:
            if self._served is not None:
                self._stand_in(self._served, death)
        self._failed(death)

    def _failed(self, error: LibMlxError) -> None:
        with self.lock:
            if self._unloading or self.error is not None:
                return
            self.error = error.copy()
            self.model = replace(self.model, status="failed", stage="", error=error.to_json())
        self.publish()
        self.loaded.set()

    def _stand_in(self, config: ServerConfig, death: EngineDied) -> None:
        """Answer at the server's address, whose clients would have nobody to tell them."""
        from lib_mlx.registry import ModelSpec, Registry
        from lib_mlx.server.listener import Listener

        with self.lock:
            server = self.server
        registry = Registry()
        name = server.model_id or self.model.model_id
        spec = ModelSpec(name, self.config.model_path, self.config, pinned=True)
        registry.add_failed(spec, death)
        try:
            listener = Listener(registry, config.model_copy(update={"port": server.port or 0}), self._handles)
            listener.start()
        except LibMlxError as error:  # somebody else has taken the port
            log.warning("handle %d: %s", self.number, error)
            self.set_server(ServerStatus("stopped"))
            return
        self._standin = listener
