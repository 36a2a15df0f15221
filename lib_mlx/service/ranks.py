"""A server whose one model is divided among several machines: what `lib-mlx serve --hosts` runs.

`mlx.launch` starts a process per host, `lib_mlx.rank`; the first one, on this machine, serves. It is spoken with over a
Unix socket, whose end ends it, and the others with it. When a rank is lost the requests end with `engine_died`, all
ranks end, and they are started again.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import EngineDied, InvalidArgument, LibMlxError, error_from_json
from lib_mlx.service.hosts import free_ports, read_hosts
from lib_mlx.service.launch import Launch
from lib_mlx.service.server import ServerAddress, stopped_by_signals
from lib_mlx.service.state import ServiceState, birth, write_state

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.service.hosts import HostFile
    from lib_mlx.settings import Settings

log = logging.getLogger(__name__)

_RESTARTS, _RESTARTS_S = 5, 60.0  # so many within so many seconds; then the service has failed
_PAUSE_S = 0.5
_LOOK_S = 0.1


def run_ranks(
    settings: Settings,
    arguments: list[str],
    name: str | None,
    on_ready: Callable[[ServerAddress], None],
    hosts: Path,
) -> None:
    """Serve until SIGINT or SIGTERM, on the main thread; as `service.server.run`. `on_ready` is called once.

    Args:
        settings: with one model that is to be loaded at the start.
        arguments: of `lib-mlx serve`, for a restart.
        name: of the service, if it keeps a state for other commands.
        on_ready: called when the model can be used.
        hosts: the file of `mlx.launch`; the first host is this machine.

    Raises:
        InvalidArgument: the file cannot be used, or there is not one model.
        EngineDied: ranks were lost again and again.
        LibMlxError: the ranks could not be started.
    """
    stopping = stopped_by_signals()
    state = ServiceState(name or "", "starting", os.getpid(), birth(os.getpid()), arguments=arguments)
    keep: Callable[[ServiceState], None] = write_state if name else lambda _state: None
    keep(state)
    try:
        known = read_hosts(hosts)
        wanted = _wanted(settings, known)
        lost: deque[float] = deque(maxlen=_RESTARTS)
        while not stopping.is_set():
            with Launch(known, wanted) as launch:
                ready = partial(_became_ready, state, keep, on_ready)
                served, died = _watch(launch, wanted, stopping, ready)
                if died is None:
                    keep(replace(state, status="stopping"))
            if died is None:
                break
            if not served and not lost:
                raise died
            if len(lost) == _RESTARTS and time.monotonic() - lost[0] < _RESTARTS_S:
                raise died
            lost.append(time.monotonic())
            state = replace(state, restarts=state.restarts + 1)
            keep(state)
            log.warning("%s; the ranks are started again", died.message)
            sys.stderr.write(f"lib-mlx: {died.message} The ranks are started again.\n")
            quick = sum(time.monotonic() - at < _RESTARTS_S for at in lost)
            stopping.wait(_PAUSE_S * 2 ** (quick - 1))
        keep(replace(state, status="stopped", pid=None))
    except LibMlxError as error:
        keep(replace(state, status="failed", error=error.to_json()))
        raise


def _became_ready(
    state: ServiceState,
    keep: Callable[[ServiceState], None],
    on_ready: Callable[[ServerAddress], None],
    address: ServerAddress,
) -> None:
    keep(replace(state, status="running", **vars(address)))
    if state.restarts == 0:
        on_ready(address)


def _wanted(settings: Settings, hosts: HostFile) -> dict[str, Any]:
    """Return what rank 0 is told; raises InvalidArgument."""
    names = settings.preloaded()
    config = settings.server_config()
    models = [model for model in config.models if model.model_id in names]
    if len(models) != 1:
        raise InvalidArgument(
            f"One model can be served on several hosts, not {len(models)}.", hint="Name one MODEL.", param="model"
        )
    changes: dict[str, Any] = {"models": [], "models_file": None, "model_store": False}
    if config.api_key == "auto":
        changes["api_key"] = secrets.token_urlsafe(32)
    if not config.port and config.uds is None:
        changes["port"] = free_ports(config.host, 1)  # the same after a restart
    server = config.model_copy(update=changes)
    return {
        "server": server.model_dump(mode="json"),
        "model": models[0].model_dump(mode="json"),
        "host": hosts.address,
        "sharding": hosts.sharding,
    }


def _watch(
    launch: Launch, wanted: dict[str, Any], stopping: threading.Event, ready: Callable[[ServerAddress], None]
) -> tuple[bool, LibMlxError | None]:
    """Wait for the ranks' end; return whether they were ready, and why they ended: None after a stop."""
    served, failure = False, None
    while not stopping.is_set():
        said = launch.hear(_LOOK_S)
        if said is None:
            break
        for message in said:
            if "ready" in message:
                served = True
                ready(ServerAddress(**message["ready"], api_key=wanted["server"]["api_key"]))
            else:
                failure = error_from_json(message["failed"])
    if stopping.is_set():
        return served, None
    words = launch.last_words.rstrip(".")
    return served, failure or EngineDied(f"The ranks have ended: {words}.", hint="See what they printed.")
