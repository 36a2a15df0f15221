"""The JSON entry points that the native library calls: bytes in, bytes out, never raising, never printing.

Thin over `lib_mlx.runtime`. Keys and codes are documented in include/lib_mlx.h.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.config import LoadConfig, ServerConfig, parse_config
from lib_mlx.errors import Internal, InvalidHandle, LibMlxError
from lib_mlx.operations import Operation
from lib_mlx.runtime import get_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lib_mlx.answers import Done, Failure, Loaded, MemoryReport, Reported, Served, Stopped, Suspended, Unloaded
    from lib_mlx.status import Status

BACKEND_ABI = 1
"""LM_BACKEND_ABI of native/backend.h; the native library refuses a package with another number."""

EXIT_DEADLINE_S = 2.5
"""How long the host's exit() may wait for generation to end; native/backend.c gives up after 3 seconds."""


def own_interpreter() -> None:
    """Settle in an interpreter that has no other user: the process around it is a host that knows no Python."""
    _occupy_closed_stdio()
    _silence_stdio()
    # Changes to os.environ stay in Python: setenv() is a data race with the host's getenv().
    os.putenv = lambda _name, _value: None
    os.unsetenv = lambda _name: None


def _occupy_closed_stdio() -> None:
    # Otherwise a client's socket becomes descriptor 1 and receives what the host prints.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _silence_stdio() -> None:
    # The host's stdin, stdout and stderr are the host's; LIB_MLX_DEBUG lends us stderr.
    null = Path(os.devnull)
    sys.stdin = null.open(encoding="utf-8")
    if sys.stderr is None or not os.environ.get("LIB_MLX_DEBUG"):
        sys.stderr = null.open("w", encoding="utf-8")
    sys.stdout = sys.stderr


def attach(publish: Callable[[int, bytes | None], None], *, model_ready: Callable[[], None]) -> None:
    """Keep the native status table up to date, so that `lib_mlx_server_status` needs no Python.

    `model_ready` is called whenever a model is ready, after its libraries have been loaded.
    """
    runtime = get_runtime()
    lock = threading.Lock()

    def on_status(handle: int, _status: Status | None) -> None:
        # Changes may be announced out of order by several threads: the last one to come publishes the present.
        with lock:
            try:
                status = runtime.status(handle)
            except InvalidHandle:
                publish(handle, None)
                return
            report: Reported = {"ok": True, "handle": handle, "model": status.model, "server": status.server}
            publish(handle, _encode(report))
        if status.model.status == "ready":
            model_ready()

    runtime.subscribe(on_status)


def dispatch(operation: int, handle: int, raw: bytes | None) -> bytes:
    """Run one operation and return its JSON answer in ASCII."""
    try:
        return _encode(_OPERATIONS[Operation(operation)](handle, raw))
    except LibMlxError as error:
        return _encode_error(error)
    except BaseException as error:  # noqa: BLE001 - nothing may be raised into C
        return _encode_error(Internal(f"{type(error).__name__}: {error}", hint="Please report this."))


def _load_model(_handle: int, raw: bytes | None) -> Loaded:
    status = get_runtime().load(parse_config(LoadConfig, raw))
    return {"ok": True, "handle": status.handle, "status": status.model.status, "model_id": status.model.model_id}


def _start_server(handle: int, raw: bytes | None) -> Served:
    return {
        "ok": True,
        "handle": handle,
        "server": get_runtime().start_server(handle, parse_config(ServerConfig, raw)).server,
    }


def _stop_server(handle: int, _raw: bytes | None) -> Stopped:
    get_runtime().stop_server(handle)
    return {"ok": True, "handle": handle, "status": "stopped"}


def _unload_model(handle: int, _raw: bytes | None) -> Unloaded:
    report = get_runtime().unload(handle)
    memory: MemoryReport = {"before_bytes": report.before_bytes, "after_bytes": report.after_bytes}
    return {"ok": True, "handle": handle, "status": "unloaded", "memory": memory}


def _suspend(handle: int, _raw: bytes | None) -> Suspended:
    return {"ok": True, "handle": handle, "status": get_runtime().suspend(handle).model.status}


def _resume(handle: int, _raw: bytes | None) -> Suspended:
    return {"ok": True, "handle": handle, "status": get_runtime().resume(handle).model.status}


def _shutdown(_handle: int, _raw: bytes | None) -> Done:
    get_runtime().shutdown()
    return {"ok": True}


def _exit(_handle: int, _raw: bytes | None) -> Done:
    get_runtime().shutdown(EXIT_DEADLINE_S)
    return {"ok": True}


_OPERATIONS: dict[Operation, Callable[[int, bytes | None], Mapping[str, Any]]] = {
    Operation.LOAD_MODEL: _load_model,
    Operation.START_SERVER: _start_server,
    Operation.STOP_SERVER: _stop_server,
    Operation.UNLOAD_MODEL: _unload_model,
    Operation.SUSPEND: _suspend,
    Operation.RESUME: _resume,
    Operation.SHUTDOWN: _shutdown,
    Operation.EXIT: _exit,
}


def _encode(answer: Mapping[str, Any]) -> bytes:
    # ASCII escapes: a lone surrogate, from a path that is not UTF-8, cannot make it fail.
    return json.dumps(answer, default=asdict).encode("ascii")


def _encode_error(error: LibMlxError) -> bytes:
    failure: Failure = {"ok": False, "error": error.to_json()}
    return _encode(failure)
