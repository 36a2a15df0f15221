"""lib_mlx.abi without C: always an answer, always ASCII."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx import abi
from lib_mlx.config import LoadConfig
from lib_mlx.runtime import Runtime

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """A runtime of the test's own behind the entry points."""
    own = Runtime()
    monkeypatch.setattr(abi, "get_runtime", lambda: own)
    return own


def answer(operation: int, handle: int = 0, raw: bytes | None = None) -> dict[str, Any]:
    """The decoded answer of an operation."""
    decoded = json.loads(abi.dispatch(operation, handle, raw).decode("ascii"))
    assert isinstance(decoded, dict)
    return decoded


@pytest.mark.parametrize("failure", [RuntimeError("é\ud800"), MemoryError(), KeyboardInterrupt(), SystemExit(3)])
def test_nothing_is_raised_into_c(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    """Any exception, even one that would end a Python program, becomes an `internal` error."""

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(runtime, "unload", fail)
    error = answer(abi.Operation.UNLOAD_MODEL, 1)["error"]
    assert error["code"] == "internal"
    assert type(failure).__name__ in error["message"]


def test_an_unknown_operation_is_an_internal_error(runtime: Runtime) -> None:
    """A number from a newer native library is answered too."""
    assert answer(99)["error"]["code"] == "internal"


def test_shutdown_answers(runtime: Runtime) -> None:
    """Shutdown and the end of the process answer, also with nothing to do."""
    assert answer(abi.Operation.SHUTDOWN) == answer(abi.Operation.EXIT) == {"ok": True}


def test_the_status_table_follows_the_runtime(runtime: Runtime, tmp_path: Path) -> None:
    """Each change is published in the form lib_mlx_server_status answers with; the end removes it."""
    table: dict[int, dict[str, Any]] = {}

    def publish(handle: int, status: bytes | None) -> None:
        if status is None:
            del table[handle]
        else:
            table[handle] = json.loads(status.decode("ascii"))

    abi.attach(publish, model_ready=lambda: pytest.fail("nothing was loaded"))
    handle = runtime.load(LoadConfig(model_path=str(tmp_path / "é"), wait=False)).handle
    assert table[handle]["ok"] is True
    assert set(table[handle]) == {"ok", "handle", "model", "server"}
    report = answer(abi.Operation.UNLOAD_MODEL, handle)
    assert (report["status"], set(report["memory"])) == ("unloaded", {"before_bytes", "after_bytes"})
    assert table == {}
