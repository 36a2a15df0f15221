"""A model whose engine and server run in a child process; the child never outlives this one."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from lib_mlx.errors import (
    EngineDied,
    InvalidHandle,
    LibMlxError,
    LoadCancelled,
    ServerStartFailed,
    UnsupportedFeature,
    error_from_json,
)
from lib_mlx.handle import Handle
from lib_mlx.isolation.child_process import ChildProcess
from lib_mlx.memory import resident_bytes
from lib_mlx.operations import Operation
from lib_mlx.status import ModelStatus, ServerStatus, Status, UnloadReport
from lib_mlx.threads import run_beside

if TYPE_CHECKING:
    from concurrent.futures import Future

    from lib_mlx.config import LoadConfig, ServerConfig
    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.handle import Owner
    from lib_mlx.server.listener import Listener

log = logging.getLogger(__name__)

_CHILDS = 1  # the handle of the only model there
_START_S = 30.0  # for a server; the child itself gives up after ten
_LATE_S = 2.0  # by how much the child may exceed a deadline that it keeps itself


class IsolatedHandle(Handle):
    """One model of a child process; see `Handle`.

    When the child dies, the model has failed (`engine_died`), and its server's address answers so.
    """

    def __init__(self, number: int, config: LoadConfig, owner: Owner) -> None:
        super().__init__(number, config, owner)
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
        values = self.config.model_dump(exclude_unset=True)
        values |= {"isolation": "none", "wait": False}
        self._child.submit(Operation.LOAD_MODEL, _CHILDS, json.dumps(values)).add_done_callback(self._accepted)

    def _accepted(self, answer: Future[dict[str, Any]]) -> None:
        """See whether the child has begun to load; how that ends is told by its status."""
        try:
            _outcome(answer)
        except LibMlxError as error:
            self._failed(error)

    def engine(self) -> EngineModel:
        """Raise: the model is not in this process."""
        self._refuse()
        raise UnsupportedFeature(
            "The model runs in a process of its own.", hint="Start its server and ask that.", param="isolation"
        )

    def start_server(self, config: ServerConfig) -> Status:
        """Have the child serve the model."""
        with self._server_lock:
            self._refuse()
            text = config.model_dump_json(exclude_unset=True)
            running = ServerStatus(**self._call(Operation.START_SERVER, text, timeout_s=_START_S)["server"])
            if running.api_key is not None:  # "auto" has become one, which the address goes on asking for
                config = config.model_copy(update={"api_key": running.api_key})
            self._served = self._served or config
        return replace(self.status(), server=running)

    def stop_server(self, deadline_s: float) -> None:
        """Have the child stop it. A child that hangs does so when it goes on; the status tells."""
        until = time.monotonic() + deadline_s + _LATE_S
        if not self._server_lock.acquire(timeout=deadline_s + _LATE_S):
            return
        try:
            if self._end_standin(deadline_s) or not self.loaded.is_set() or self.error is not None:
                return
            self._served = None
            with contextlib.suppress(EngineDied, InvalidHandle):  # the server has ended with the child
                self._call(Operation.STOP_SERVER, timeout_s=until - time.monotonic())
        except ServerStartFailed as error:
            log.warning("handle %d: %s", self.number, error)
        finally:
            self._server_lock.release()

    def _end_standin(self, deadline_s: float) -> bool:
        """Close what answers in the child's place. Returns whether there was something. With the server's lock."""
        standin, self._standin = self._standin, None
        if standin is None:
            return False
        self._served = None
        standin.stop(deadline_s)
        self.set_server(ServerStatus("stopped"))
        return True

    def set_suspended(self, *, suspended: bool) -> None:
        """Have the child suspend or resume."""
        self._refuse()
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
        run_beside(f"lib_mlx-leave-{self.number}", partial(self._leave, deadline_s))(deadline_s)
        self._child.end(max(0.5, until - time.monotonic()))
        with self._server_lock:  # nobody keeps it for long any more: every call has ended with the child
            self._end_standin(max(0.5, until - time.monotonic()))
        with self.lock:
            self.error = self.error or LoadCancelled("The model was unloaded.")
        self.loaded.set()
        self.gone()
        log.info("handle %d: unloaded", self.number)
        return UnloadReport(before, resident_bytes())

    def _leave(self, deadline_s: float) -> None:
        """Let the child end its streams and write what it keeps."""
        try:
            self._child.submit(Operation.UNLOAD_MODEL, _CHILDS).result(deadline_s)
        except (LibMlxError, TimeoutError) as error:
            log.debug("handle %d: %s", self.number, error)

    def _refuse(self) -> None:
        """Raise why there is no model to work with, if there is none."""
        with self.lock:
            if self._unloading:
                raise self._leaving()
            self.refuse_unless_loaded()

    def _leaving(self) -> InvalidHandle:
        return InvalidHandle(f"The model of handle {self.number} is being unloaded.")

    def _call(self, operation: Operation, config: str | None = None, timeout_s: float | None = None) -> dict[str, Any]:
        try:
            return _outcome(self._child.submit(operation, _CHILDS, config), timeout_s)
        except EngineDied:
            if self._unloading:
                raise self._leaving() from None
            raise

    def _childs_bytes(self) -> int:
        try:
            return int(psutil.Process(self._child.pid).memory_info().rss) if self._child.pid else 0
        except psutil.Error:
            return 0

    # What the child tells

    def _take(self, told: dict[str, Any]) -> None:
        model, server = ModelStatus(**told["model"]), ServerStatus(**told["server"])
        with self.lock:
            if self._unloading or self.error is not None:
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
            if self._served is not None and not self._unloading:
                self._stand_in(self._served, death)
            if self._standin is None:  # the child may have told of a server that was starting or stopping
                self.set_server(ServerStatus("stopped"))
        self._failed(death)

    def _failed(self, error: LibMlxError) -> None:
        with self.lock:
            if self._unloading or self.error is not None:
                return
            self.error = error.copy()
            self.model = replace(self.model, status="failed", stage="", error=error.to_json())
        self.publish()
        self._child.dismiss()
        self.loaded.set()

    def _stand_in(self, config: ServerConfig, death: EngineDied) -> None:
        """Answer at the server's address, whose clients would have nobody to tell them."""
        try:
            from lib_mlx.isolation.standin import stand_in

            self._standin = stand_in(self.status(), self.config, config, death, self._owner)
        except Exception as error:  # noqa: BLE001 - a taken port, no descriptor left: the death must be told all the same
            log.warning("handle %d: nobody answers at its server's address: %s", self.number, error)


def _outcome(answer: Future[dict[str, Any]], timeout_s: float | None = None) -> dict[str, Any]:
    """Return the answer of a child that succeeded; raise its error otherwise."""
    try:
        told = answer.result(timeout_s)
    except TimeoutError:
        raise ServerStartFailed("The engine's process does not answer.", hint="Unload the handle.") from None
    if not told["ok"]:
        raise error_from_json(told["error"])
    return told
