"""A server of many models that belongs to no handle: what `lib-mlx serve` runs."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lib_mlx.errors import LibMlxError
from lib_mlx.service.state import ServiceState, birth, write_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from lib_mlx.registry import Registry
    from lib_mlx.server.listener import Listener
    from lib_mlx.settings import Settings


_LOOK_S = 0.05  # between two looks whether a model is loaded


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is, and what it wants to be told."""

    base_url: str
    uds: str | None
    api_key: str | None


@dataclass
class RunningServer:
    """A server that accepts connections. `stop` it."""

    listener: Listener
    registry: Registry
    api_key: str | None

    @property
    def base_url(self) -> str:
        """The root of the API."""
        return self.listener.base_url

    @property
    def address(self) -> ServerAddress:
        """Where it is."""
        return ServerAddress(self.base_url, self.listener.uds, self.api_key)

    def stop(self, deadline_s: float = 5.0) -> None:
        """End the streams with their terminal event, close, unload. Blocks."""
        self.listener.stop(deadline_s)
        self.registry.close()


def start_server(settings: Settings) -> RunningServer:
    """Serve what `settings` say; blocks until connections are accepted. Models are not loaded yet.

    Raises:
        AddressInUse, ServerStartFailed, InvalidArgument: it cannot be served.
    """
    from lib_mlx.registry.sources import new_registry
    from lib_mlx.runtime import get_runtime
    from lib_mlx.server.listener import Listener

    config = settings.server_config()
    if config.api_key == "auto":
        config = config.model_copy(update={"api_key": secrets.token_urlsafe(32)})
    registry = new_registry(config)
    listener = Listener(registry, config, get_runtime())
    listener.start()
    return RunningServer(listener, registry, config.api_key)


def run(settings: Settings, arguments: list[str], name: str | None, on_ready: Callable[[ServerAddress], None]) -> None:
    """Serve until SIGINT or SIGTERM, on the main thread. A server with a `name` keeps a state for other commands.

    `on_ready` is called when the models that are to be preloaded are ready.

    Raises:
        LibMlxError: it could not be started, or one of these models not be loaded.
    """
    stopping = stopped_by_signals()
    state = ServiceState(name or "", "starting", os.getpid(), birth(os.getpid()), arguments=arguments)
    keep = write_state if name else _nothing
    keep(state)
    server: RunningServer | None = None
    try:
        server = start_server(settings)
        _preload(server, settings.preloaded(), stopping)
        if not stopping.is_set():
            uds = server.listener.uds
            state = replace(state, status="running", base_url=server.base_url, uds=uds, api_key=server.api_key)
            keep(state)
            on_ready(server.address)
            stopping.wait()
        keep(replace(state, status="stopping"))
    except LibMlxError as error:
        keep(replace(state, status="failed", error=error.to_json()))
        raise
    finally:
        if server is not None:
            server.stop()
    keep(replace(state, status="stopped", pid=None))


def stopped_by_signals() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set from now on. Main thread."""
    stopping = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stopping


def _preload(server: RunningServer, names: list[str], stopping: threading.Event) -> None:
    """Wait until models are loaded, one after the other, or until a stop."""
    for name in names:
        loading = server.registry.lease(name)
        server.registry.give_up(loading)  # which releases it when it comes
        while not loading.done() and not stopping.wait(_LOOK_S):
            pass
        if loading.done():
            loading.result()


def _nothing(_state: ServiceState) -> None:
    return
