"""A server whose one model is divided among several machines: what `lib-mlx serve --hosts` runs.

`mlx.launch` starts a process per host, `lib_mlx.rank`; the first one, on this machine, serves. It is spoken with over a
Unix socket, whose end ends it, and the others with it. When a rank is lost the requests end with `engine_died`, all
ranks end, and they are started again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import EngineDied, InvalidArgument, LibMlxError, error_from_json
from lib_mlx.service.server import ServerAddress, stopped_by_signals
from lib_mlx.service.state import ServiceState, birth, write_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.settings import Settings

log = logging.getLogger(__name__)

_RESTARTS, _RESTARTS_S = 5, 60.0  # so many within so many seconds; then the service has failed
_PAUSE_S = 0.5
_LOOK_S = 0.1
_END_S = 8.0  # for ranks to end by themselves
_FIRST_PORT = 32323  # mlx.launch's
_STUFFING = bytes(256 << 10)  # fills the pipes to the ranks, four of Linux's


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
        InvalidArgument: the file cannot be read, or there is not one model.
        EngineDied: ranks were lost again and again.
        LibMlxError: the ranks could not be started.
    """
    stopping = stopped_by_signals()
    state = ServiceState(name or "", "starting", os.getpid(), birth(os.getpid()), arguments=arguments)
    keep: Callable[[ServiceState], None] = write_state if name else lambda _state: None
    keep(state)
    try:
        wanted = _wanted(settings, hosts)
        lost: deque[float] = deque(maxlen=_RESTARTS)
        while not stopping.is_set():
            served, died = _serve_once(wanted, hosts, stopping, partial(_became_ready, state, keep, on_ready))
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


def _wanted(settings: Settings, hosts: Path) -> dict[str, Any]:
    """Return what rank 0 is told; raises InvalidArgument."""
    addresses = _read_hosts(hosts)
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
        changes["port"] = _free_ports(config.host, 1)  # the same after a restart
    server = config.model_copy(update=changes)
    return {
        "server": server.model_dump(mode="json"),
        "model": models[0].model_dump(mode="json"),
        "host": addresses[0],
        "hosts": addresses,
    }


def _read_hosts(file: Path) -> list[str]:
    """Return an address of each host; raises InvalidArgument."""
    try:
        known = json.loads(file.read_bytes())
        hosts = known["hosts"] if isinstance(known, dict) else known
        addresses = [str((host.get("ips") or [host["ssh"]])[0]) for host in hosts]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise InvalidArgument(
            f"{file} is no file of hosts: {type(error).__name__}: {error}.",
            hint='Write mlx.launch\'s format, such as [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, …].',
            param="hosts",
        ) from None
    if len(addresses) < 2:
        raise InvalidArgument(
            f"{file} names {len(addresses)} hosts.", hint="Name two or more, or leave --hosts out.", param="hosts"
        )
    return addresses


def _free_ports(host: str, count: int) -> int:
    """Return the first of `count` ports in a row that nobody has now."""
    while True:
        with contextlib.ExitStack() as bound, contextlib.suppress(OSError, OverflowError):
            first = bound.enter_context(socket.create_server((host, 0))).getsockname()[1]
            for port in range(first + 1, first + count):
                bound.enter_context(socket.create_server((host, port)))
            return int(first)


def _serve_once(
    wanted: dict[str, Any], hosts: Path, stopping: threading.Event, ready: Callable[[ServerAddress], None]
) -> tuple[bool, LibMlxError | None]:
    """Start the ranks and wait; return whether they were ready, and why they ended: None after a stop."""
    folder = Path(tempfile.mkdtemp(prefix="lib-mlx-ranks-"))
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "control"))
            server.listen(1)
            launcher = _launch(wanted, hosts, folder)
            try:
                return _watch(_Rank0(server), launcher, wanted, stopping, ready)
            finally:
                _end(launcher)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _launch(wanted: dict[str, Any], hosts: Path, folder: Path) -> subprocess.Popen[bytes]:
    addresses = wanted["hosts"]
    here = all(address == "127.0.0.1" for address in addresses)
    port = _free_ports("127.0.0.1", len(addresses)) if here else _FIRST_PORT
    launcher = subprocess.Popen(  # noqa: S603 - MLX's
        [
            *(sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"),  # `mlx.launch`
            *("--hostfile", str(hosts), "--starting-port", str(port), "--python", sys.executable),
            *("--", "-m", "lib_mlx.rank", str(folder / "control")),
        ],
        stdin=subprocess.PIPE,
        stdout=2,  # ours tells clients when it is ready
        env={**os.environ, "TMPDIR": str(folder)},  # the launcher leaves files behind
        start_new_session=True,
    )
    threading.Thread(target=_stuff, args=(launcher,), name="lib_mlx-launcher", daemon=True).start()
    return launcher


def _stuff(launcher: subprocess.Popen[bytes]) -> None:
    """Fill the ranks' standard inputs, which they do not read: the launcher spins while one has room."""
    with contextlib.suppress(OSError):
        if launcher.stdin is not None:
            launcher.stdin.write(_STUFFING)
            launcher.stdin.flush()


class _Rank0:
    """The connection with rank 0, made when it comes."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._connected: socket.socket | None = None
        self._read = b""

    def wait(self, wanted: dict[str, Any], timeout_s: float) -> list[dict[str, Any]] | None:
        """Return what it has said within `timeout_s`; None if it is gone."""
        if not select.select([self._connected or self._server], [], [], timeout_s)[0]:
            return []
        if self._connected is None:
            self._connected, _ = self._server.accept()
            self._connected.sendall(json.dumps(wanted).encode() + b"\n")
            return []
        more = self._connected.recv(1 << 16)
        if not more:
            return None
        *lines, self._read = (self._read + more).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Have it stop."""
        if self._connected is not None:
            self._connected.close()


def _watch(
    rank: _Rank0,
    launcher: subprocess.Popen[bytes],
    wanted: dict[str, Any],
    stopping: threading.Event,
    ready: Callable[[ServerAddress], None],
) -> tuple[bool, LibMlxError | None]:
    served, failure = False, None
    try:
        while not stopping.is_set():
            said = rank.wait(wanted, _LOOK_S)
            if said is None or launcher.poll() is not None:
                break
            for message in said:
                if "ready" in message:
                    served = True
                    ready(ServerAddress(**message["ready"], api_key=wanted["server"]["api_key"]))
                else:
                    failure = error_from_json(message["failed"])
        if stopping.is_set():
            return served, None
        return served, failure or EngineDied("The ranks have ended without a word.", hint="See what they printed.")
    finally:
        rank.close()


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """Wait for the ranks, which end with rank 0; those that do not are killed."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        launcher.wait(_END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    if launcher.stdin is not None:
        with contextlib.suppress(OSError):
            launcher.stdin.close()
