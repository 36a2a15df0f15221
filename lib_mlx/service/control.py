"""Starting and stopping services in the background."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from lib_mlx.errors import LibMlxError, ServerStartFailed, error_from_json
from lib_mlx.models.disk import room_on
from lib_mlx.service.state import ServiceState, birth, checked, is_alive, log_path, read_state, state_dir, write_state

if TYPE_CHECKING:
    from pathlib import Path

_POLL_S = 0.05
_TAIL_LINES = 15


def start(name: str, arguments: list[str], timeout_s: float) -> tuple[ServiceState, bool]:
    """Start a service that serves with `arguments` (those of `lib-mlx serve`); blocks until it is healthy.

    Returns its state, and whether it was started now: one that runs already is left as it is.

    Raises:
        LibMlxError: why it could not be started, with the last lines of its log.
    """
    import filelock

    log = log_path(name)
    with room_on(state_dir()):
        state_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
        with filelock.FileLock(log.with_suffix(".lock")):  # two that start at once start one
            present = read_state(name)
            if present.status in {"starting", "running"}:
                return _await_running(name, present.pid, timeout_s), False
            begun = log.stat().st_size if log.exists() else 0
            process = _spawn(name, arguments, log)
            try:
                return _await_running(name, process.pid, timeout_s), True
            except LibMlxError as error:
                if process.poll() is None:
                    _end(ServiceState(name, pid=process.pid), 5.0)
                error.hint = f"{error.hint}\n{_tail(log, begun)}".strip()
                raise


def _spawn(name: str, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Begin a service's process, whose state says so; it waits till that is written."""
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "lib_mlx", "serve", "--service", name, *arguments],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd="/",
        )
    try:
        write_state(ServiceState(name, "starting", process.pid, birth(process.pid), arguments=arguments))
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if process.stdin is not None:
            process.stdin.close()
    return process


def _await_running(name: str, pid: int | None, timeout_s: float) -> ServiceState:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        _reap(pid)
        state = read_state(name)
        if state.status == "running":
            return state
        if state.status == "failed" and state.error is not None:
            raise error_from_json(state.error)
        if state.status in {"crashed", "stopped", "failed"}:
            raise ServerStartFailed(f"The service {name!r} ended while it was starting.", hint="Its log says more.")
        time.sleep(_POLL_S)
    raise ServerStartFailed(f"The service {name!r} was not healthy after {timeout_s:g} s.", hint="Its log says more.")


def stop(name: str, timeout_s: float) -> ServiceState:
    """End a service: kindly, and after `timeout_s` not. Blocks. Without one, nothing happens."""
    state = read_state(checked(name))
    if state.pid is None or not is_alive(state):
        if state.status not in {"stopped", "failed"}:
            state = ServiceState(name, arguments=state.arguments)
            write_state(state)
        return state
    _end(state, timeout_s)
    ended = read_state(name)
    if ended.status != "stopped":  # it was killed
        ended = ServiceState(name, arguments=state.arguments)
        write_state(ended)
    return ended


def _end(state: ServiceState, timeout_s: float) -> None:
    if state.pid is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(state.pid, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            _reap(state.pid)
            if not is_alive(state):
                return
            time.sleep(_POLL_S)


def _reap(pid: int | None) -> None:
    """Let a child of ours that has ended go: it would look alive."""
    if pid is not None:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return


def _tail(path: Path, offset: int) -> str:
    """Return the last lines of a log, of those behind `offset`."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(["The log's last lines:", *lines[-_TAIL_LINES:]]) if lines else ""
