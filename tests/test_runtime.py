"""Handles and lifecycles, under races and misuse."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from lib_mlx.config import LoadConfig, ServerConfig
from lib_mlx.engine import engine
from lib_mlx.errors import (
    AddressInUse,
    EngineDied,
    Internal,
    InvalidArgument,
    InvalidHandle,
    LibMlxError,
    ModelLoading,
    ModelNotFound,
)
from lib_mlx.runtime import Runtime
from lib_mlx.status import ServerStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lib_mlx.status import Status


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A runtime of the test's own."""
    runtime = Runtime()
    yield runtime
    runtime.shutdown()


def config(path: Path, *, wait: bool = True) -> LoadConfig:
    """A load of `path`."""
    return LoadConfig(model_path=str(path), wait=wait)


def wait_until_loaded(runtime: Runtime, handle: int) -> Status:
    """Poll as a host would."""
    until = time.monotonic() + 30
    while (status := runtime.status(handle)).model.status == "loading":
        assert time.monotonic() < until
        time.sleep(0.005)
    return status


def test_the_life_of_a_model(runtime: Runtime, crafted: Path) -> None:
    """Load, serve, stop, unload: each state is what the header says, and the handle ends invalid."""
    status = runtime.load(config(crafted))
    assert (status.model.status, status.model.progress, status.server.status) == ("ready", 1.0, "stopped")
    assert (status.model.model_id, status.model.context_length) == (crafted.name, 4096)
    assert (status.model.device in {"cpu", "gpu"}, status.model.weights) == (True, "float32")
    server = runtime.start_server(status.handle, ServerConfig()).server
    assert (server.status, server.base_url) == ("running", f"http://127.0.0.1:{server.port}")
    assert runtime.start_server(status.handle, ServerConfig(port=1)).server == server
    assert runtime.stop_server(status.handle).server.status == "stopped"
    assert runtime.stop_server(status.handle).server.status == "stopped"
    report = runtime.unload(status.handle)
    assert report.before_bytes > 0
    for call in (runtime.status, runtime.stop_server, runtime.unload, runtime.suspend, runtime.resume):
        with pytest.raises(InvalidHandle):
            call(status.handle)


def test_loading_without_waiting(runtime: Runtime, crafted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wait: false` returns while loading; until it is ready nothing can be served."""
    held, load = threading.Event(), engine.load

    def slow(*arguments: Any, **options: Any) -> engine.EngineModel:
        held.wait(10)
        return load(*arguments, **options)

    monkeypatch.setattr(engine, "load", slow)
    status = runtime.load(config(crafted, wait=False))
    assert status.model.status == "loading"
    with pytest.raises(ModelLoading):
        runtime.start_server(status.handle, ServerConfig())
    held.set()
    assert wait_until_loaded(runtime, status.handle).model.status == "ready"


def test_a_failed_load(runtime: Runtime, tmp_path: Path) -> None:
    """Waiting, it raises and leaves no handle; not waiting, the state says why until it is unloaded."""
    with pytest.raises(ModelNotFound):
        runtime.load(config(tmp_path / "nowhere"))
    status = runtime.load(config(tmp_path / "nowhere", wait=False))
    failed = wait_until_loaded(runtime, status.handle)
    assert failed.model.status == "failed"
    assert failed.model.error is not None
    assert failed.model.error["code"] == "model_not_found"
    with pytest.raises(ModelNotFound):
        runtime.start_server(status.handle, ServerConfig())
    runtime.unload(status.handle)
    with pytest.raises(InvalidHandle):
        runtime.status(status.handle)


@pytest.mark.parametrize("failure", [MemoryError("no more"), SystemExit("no more"), RecursionError("no more")])
def test_whatever_a_load_raises(
    runtime: Runtime, crafted: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """Whoever waits for the load gets an error, and the next load works."""

    def explode(*_: Any, **__: Any) -> engine.EngineModel:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(engine, "load", explode)
        with pytest.raises(Internal, match="no more"):
            runtime.load(config(crafted))
    assert runtime.load(config(crafted)).model.status == "ready"


@pytest.mark.alone
def test_unload_cancels_a_load(runtime: Runtime, crafted: Path) -> None:
    """A load in progress ends within a second of unload."""
    status = runtime.load(config(crafted, wait=False))
    begun = time.monotonic()
    runtime.unload(status.handle)
    assert time.monotonic() - begun < 1
    with pytest.raises(InvalidHandle):
        runtime.status(status.handle)


def test_unload_does_not_wait_for_a_load_that_hangs(
    runtime: Runtime, crafted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unload keeps its deadline even if the load does not look up; what it loads in the end is freed."""
    held, freed = threading.Event(), threading.Event()
    load, unload = engine.load, engine.EngineModel.unload

    def slow(*arguments: Any, **options: Any) -> engine.EngineModel:
        held.wait(10)
        return load(*arguments, **options | {"cancelled": lambda: False})

    def watched(model: engine.EngineModel) -> None:
        unload(model)
        freed.set()

    monkeypatch.setattr(engine, "load", slow)
    monkeypatch.setattr(engine.EngineModel, "unload", watched)
    handle = runtime.load(config(crafted, wait=False)).handle
    begun = time.monotonic()
    runtime.unload(handle, deadline_s=0.1)
    assert time.monotonic() - begun < 2
    held.set()
    assert freed.wait(20)


def test_two_models_at_once(runtime: Runtime, crafted: Path) -> None:
    """Two loads give two handles whose servers answer independently."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: runtime.load(config(crafted)).handle, range(2))
    assert first != second
    urls = [runtime.start_server(handle, ServerConfig()).server.base_url for handle in (first, second)]
    runtime.unload(first)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{urls[0]}/health")
    assert httpx2.get(f"{urls[1]}/health").status_code == 200


def test_bad_addresses(runtime: Runtime, crafted: Path) -> None:
    """A taken port, a foreign address and a bad name are errors of their own, and the server can still start."""
    handle = runtime.load(config(crafted)).handle
    other = runtime.load(config(crafted)).handle
    taken = runtime.start_server(handle, ServerConfig()).server.port
    assert taken is not None
    with pytest.raises(AddressInUse, match=str(taken)):
        runtime.start_server(other, ServerConfig(port=taken))
    with pytest.raises(LibMlxError) as caught:
        runtime.start_server(other, ServerConfig(host="192.0.2.1"))
    assert caught.value.code == "server_start_failed"
    with pytest.raises(InvalidArgument, match="host"):
        runtime.start_server(other, ServerConfig(host="no such host"))
    assert runtime.status(other).server.status == "stopped"
    assert runtime.start_server(other, ServerConfig(host="::1")).server.base_url is not None


def test_racing_calls(runtime: Runtime, crafted: Path) -> None:
    """Starts, stops, status calls and unloads from many threads give answers or errors, never a hang."""
    handle = runtime.load(config(crafted)).handle
    calls = [
        lambda: runtime.start_server(handle, ServerConfig()),
        lambda: runtime.stop_server(handle),
        lambda: runtime.status(handle),
        lambda: runtime.suspend(handle),
        lambda: runtime.resume(handle),
    ]

    def call(number: int) -> None:
        try:
            calls[number % len(calls)]()
        except LibMlxError as error:
            known = {"invalid_handle", "model_loading", "load_cancelled", "shutting_down"}
            assert error.code in known  # noqa: PT017 - the only ones

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(call, number) for number in range(60)]
        unload = pool.submit(runtime.unload, handle)
        for future in futures:
            future.result(timeout=30)
        unload.result(timeout=30)
    with pytest.raises(InvalidHandle):
        runtime.status(handle)


def test_no_server_starts_on_a_model_that_is_going(runtime: Runtime, crafted: Path) -> None:
    """Starts that race an unload end with an error; no port is left listening."""
    for _ in range(5):
        handle = runtime.load(config(crafted)).handle
        started: list[str] = []

        def start(handle: int = handle, started: list[str] = started) -> None:
            with contextlib.suppress(LibMlxError):
                started.append(runtime.start_server(handle, ServerConfig()).server.base_url or "")

        with ThreadPoolExecutor(6) as pool:
            starts = [pool.submit(start) for _ in range(5)]
            pool.submit(runtime.unload, handle).result(timeout=30)
            for future in starts:
                future.result(timeout=30)
        for url in started:
            with pytest.raises(httpx2.TransportError):
                httpx2.get(f"{url}/health")


def test_an_error_is_raised_as_a_new_object(runtime: Runtime, tmp_path: Path) -> None:
    """A failed load's error does not grow with each call that meets it."""
    handle = wait_until_loaded(runtime, runtime.load(config(tmp_path / "nowhere", wait=False)).handle).handle
    caught = []
    for _ in range(2):
        with pytest.raises(ModelNotFound) as error:
            runtime.engine(handle)
        caught.append(error.value)
    assert caught[0] is not caught[1]
    assert caught[0].to_json() == caught[1].to_json()


def test_listeners_see_every_state(runtime: Runtime, crafted: Path) -> None:
    """Progress and states are told in order, and None when the handle is gone."""
    seen: list[Status | None] = []
    runtime.subscribe(lambda _handle, status: seen.append(status))
    handle = runtime.load(config(crafted)).handle
    runtime.start_server(handle, ServerConfig())
    runtime.unload(handle)
    assert seen[-1] is None
    models = [status.model.status for status in seen if status]
    servers = [status.server.status for status in seen if status]
    assert list(dict.fromkeys(models)) == ["loading", "ready", "unloading"]
    assert [state for state, before in zip(servers, ["", *servers], strict=False) if state != before] == [
        "stopped",
        "starting",
        "running",
        "stopping",
        "stopped",
    ]


def test_shutdown_is_idempotent_and_not_the_end(runtime: Runtime, crafted: Path) -> None:
    """After a shutdown everything is gone, a second one does nothing, and a load works again."""
    handle = runtime.load(config(crafted)).handle
    runtime.start_server(handle, ServerConfig())
    runtime.shutdown()
    runtime.shutdown()
    with pytest.raises(InvalidHandle):
        runtime.status(handle)
    assert runtime.load(config(crafted)).model.status == "ready"


def test_no_thread_survives_the_last_handle(runtime: Runtime, crafted: Path) -> None:
    """Load, start, stop, unload: the threads afterwards are those after the first round."""

    def round_() -> int:
        handle = runtime.load(config(crafted)).handle
        runtime.start_server(handle, ServerConfig())
        runtime.unload(handle)
        return threading.active_count()

    first = round_()
    assert [round_() for _ in range(3)][-1] <= first


EXIT = """
import sys, threading, time
import httpx2, lib_mlx
model = lib_mlx.load_model(sys.argv[1])
server = model.start_server()
def read():
    with httpx2.stream("POST", server.base_url + "/v1/chat/completions", timeout=30,
                       json={"stream": True, "messages": [{"role": "user", "content": "loop"}]}) as answer:
        for line in answer.iter_lines():
            started.set()
started = threading.Event()
threading.Thread(target=read, daemon=True).start()
started.wait()
sys.exit(7)
"""


def test_exit_while_generating(crafted: Path) -> None:
    """A Python host that just exits, with a stream running, is gone promptly with its own exit code."""
    for _ in range(3):
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-c", EXIT, str(crafted)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (7, "")
        assert time.monotonic() - begun < 20


@pytest.fixture
def no_more_threads() -> Iterator[Callable[[], None]]:
    """Have every start of a thread fail, as at the exit of Python 3.12 or where the process has reached its limit."""
    size = threading.stack_size()

    def exhaust() -> None:
        threading.stack_size(1 << 46)

    yield exhaust
    threading.stack_size(size)


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_load_for_which_there_is_no_thread(
    runtime: Runtime, crafted: Path, no_more_threads: Callable[[], None], isolation: Any
) -> None:
    """It fails, and leaves no handle that goes on loading for ever."""
    no_more_threads()
    with pytest.raises((RuntimeError, EngineDied), match="can't start new thread"):
        runtime.load(LoadConfig(model_path=str(crafted), isolation=isolation))
    assert runtime.statuses() == []


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_shutdown_without_threads(
    runtime: Runtime, crafted: Path, no_more_threads: Callable[[], None], isolation: Any
) -> None:
    """Every server is stopped and every model unloaded where no thread can be started any more."""
    handle = runtime.load(LoadConfig(model_path=str(crafted), isolation=isolation)).handle
    url = runtime.start_server(handle, ServerConfig()).server.base_url
    no_more_threads()
    runtime.shutdown()
    assert runtime.statuses() == []
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health")


def test_the_last_change_is_told_last(runtime: Runtime, crafted: Path) -> None:
    """A listener that is slow with one change does not make others hear of an older state after a newer one."""
    handle = runtime._find(runtime.load(config(crafted)).handle)
    slow = threading.Event()
    heard: list[str] = []

    def dawdle(_handle: int, status: Status | None) -> None:
        if status is not None and status.server.status == "starting":
            slow.set()
            time.sleep(0.3)

    runtime.subscribe(dawdle)
    runtime.subscribe(lambda _, status: heard.append(status.server.status) if status else None)
    first = threading.Thread(target=handle.set_server, args=(ServerStatus("starting"),))
    first.start()
    slow.wait()
    handle.set_server(ServerStatus("stopped"))
    first.join()
    assert heard == ["starting", "stopped"]
