"""What stands behind a handle: one model and its server, wherever they run."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lib_mlx.errors import LibMlxError, ModelLoading
from lib_mlx.status import Handles, ModelStatus, ServerStatus, Status

if TYPE_CHECKING:
    from lib_mlx.config import LoadConfig, ServerConfig
    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.logs import LogFile
    from lib_mlx.status import UnloadReport

STOP_DEADLINE_S = 5.0


class Owner(Handles, Protocol):
    """Who knows all handles."""

    def changed(self, handle: Handle) -> None:
        """Take note of a change of a handle's status; called on the thread that made it."""

    def forget(self, handle: Handle) -> None:
        """Know a handle no more: its model is gone."""


class Handle(ABC):
    """One loaded (or loading) model. `lock` guards the fields; it is never held while work is done.

    Args:
        number: by which hosts know it.
        config: what to load and how.
        owner: is told of changes.
    """

    def __init__(self, number: int, config: LoadConfig, owner: Owner) -> None:
        self.number = number
        self.config = config
        self.lock = threading.Lock()
        self.loaded = threading.Event()
        """The load has ended, well or not."""
        self.error: LibMlxError | None = None
        """Why there is no model."""
        self.model = ModelStatus("loading", config.model_id or Path(config.model_path).name, config.model_path)
        self.server = ServerStatus("stopped")
        self.log: LogFile | None = None
        """Open as long as the handle is."""
        self._owner = owner

    def status(self) -> Status:
        """Return the present state; never blocks."""
        with self.lock:
            return Status(self.number, self.model, self.server)

    @abstractmethod
    def load(self) -> None:
        """Begin to load; `loaded` tells when that has ended."""

    @abstractmethod
    def engine(self) -> EngineModel:
        """Return the model itself, for use without a server.

        Raises:
            LibMlxError: there is none (yet), or not in this process.
        """

    @abstractmethod
    def start_server(self, config: ServerConfig) -> Status:
        """See `Runtime.start_server`."""

    @abstractmethod
    def stop_server(self, deadline_s: float) -> None:
        """See `Runtime.stop_server`."""

    @abstractmethod
    def set_suspended(self, *, suspended: bool) -> None:
        """See `Runtime.suspend`."""

    @abstractmethod
    def unload(self, deadline_s: float) -> UnloadReport:
        """See `Runtime.unload`."""

    def publish(self) -> None:
        """Tell that something has changed."""
        self._owner.changed(self)

    def gone(self) -> None:
        """Tell that the handle is invalid from now on."""
        self._owner.forget(self)

    def set_server(self, server: ServerStatus) -> None:
        """Change the server's state."""
        with self.lock:
            self.server = server
        self.publish()

    @abstractmethod
    def set_stalled(self, stalled: bool) -> None:
        """Note that the engine of this process stands still, or goes on."""

    def refuse_unless_loaded(self) -> None:
        """Raise why there is no model to work with, if there is none. To be called with the lock."""
        if self.error is not None:
            raise self.error.copy()
        if not self.loaded.is_set():
            raise ModelLoading(
                "The model is still loading.", hint="Poll server_status until it is ready.", retry_after=1
            )

    def progressed(self, fraction: float, stage: str) -> None:
        """Note how far a load has come."""
        with self.lock:
            if self.model.status != "loading":
                return
            self.model = replace(self.model, progress=round(fraction, 4), stage=stage)
        self.publish()
