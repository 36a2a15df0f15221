"""Models in processes of their own: the same life, and every way to lose one."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx2
import psutil
import pytest

from lib_mlx.config import LoadConfig, ServerConfig, parse_config
from lib_mlx.errors import (
    AddressInUse,
    CorruptModel,
    EngineDied,
    InvalidHandle,
    LibMlxError,
    LoadCancelled,
    ModelNotFound,
    UnsupportedFeature,
)
from lib_mlx.isolation import IsolatedHandle
from lib_mlx.runtime import Runtime
from tests.checkpoints import SCRIPTS
from tests.server.test_server import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A runtime of the test's own, whose children are gone afterwards."""
    runtime = Runtime()
    yield runtime
    runtime.shutdown()
    assert not [child for child in psutil.Process().children() if "lib_mlx.child" in " ".join(child.cmdline())]


def load(runtime: Runtime, path: Path, **options: Any) -> int:
    """Load in a process of its own."""
    return runtime.load(LoadConfig(model_path=str(path), isolation="process", **options)).handle


def childs_pid(runtime: Runtime, handle: int) -> int:
    """The process of a model."""
    isolated = runtime._find(handle)
    assert isinstance(isolated, IsolatedHandle)
    assert isolated.pid is not None
    return isolated.pid


def said(url: str | None) -> str:
    """What a server's model answers."""
    return str(httpx2.post(f"{url}{CHAT}", json=HELLO).json()["choices"][0]["message"]["content"])


def test_the_life_of_a_model(runtime: Runtime, crafted: Path) -> None:
    """Load, serve, suspend, resume, stop and unload are what they are without isolation."""
    handle = load(runtime, crafted, model_id="alone")
    assert runtime.status(handle).model.status == "ready"
    assert runtime.status(handle).model.context_length == 4096
    server = runtime.start_server(handle, ServerConfig(api_key="auto")).server
    assert (server.status, server.model_id, bool(server.api_key)) == ("running", "alone", True)
    assert runtime.status(handle).server.api_key is None
    assert runtime.suspend(handle).model.status == "suspended"
    assert runtime.resume(handle).model.status == "ready"
    assert runtime.stop_server(handle).server.status == "stopped"
    assert said(runtime.start_server(handle, ServerConfig()).server.base_url) == SCRIPTS["hello"].text()
    child = childs_pid(runtime, handle)
    report = runtime.unload(handle)
    assert report.before_bytes - report.after_bytes > 30 << 20
    assert not psutil.pid_exists(child)
    with pytest.raises(InvalidHandle):
        runtime.status(handle)


def test_errors_are_what_they_are(runtime: Runtime, crafted: Path, tmp_path: Path) -> None:
    """Errors cross the border with their type, message and hint; a failed load leaves no process."""
    with pytest.raises(ModelNotFound, match="nowhere"):
        load(runtime, tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    handle = load(runtime, tmp_path, wait=False)
    eventually(lambda: runtime.status(handle).model.status == "failed")
    with pytest.raises(CorruptModel):
        runtime.start_server(handle, ServerConfig())
    first, second = load(runtime, crafted), load(runtime, crafted)
    port = runtime.start_server(first, ServerConfig()).server.port
    with pytest.raises(AddressInUse, match=str(port)):
        runtime.start_server(second, ServerConfig(port=port or 0))
    with pytest.raises(UnsupportedFeature, match="process of its own"):
        runtime.engine(first)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_death_is_told(runtime: Runtime, crafted: Path, number: signal.Signals) -> None:
    """Status, listeners, the server's address and its events tell of it; the next load works."""
    handle = load(runtime, crafted, model_id="mortal")
    server = runtime.start_server(handle, ServerConfig(api_key="secret")).server
    told: list[str | None] = []
    runtime.subscribe(
        lambda _, status: told.append(status.model.error["code"] if status and status.model.error else None)
    )
    os.kill(childs_pid(runtime, handle), number)
    eventually(lambda: runtime.status(handle).model.status == "failed")
    error = runtime.status(handle).model.error
    assert error is not None
    assert (error["code"], number.name in error["message"]) == ("engine_died", True)
    assert "engine_died" in told
    with httpx2.Client(base_url=server.base_url or "", headers={"x-api-key": "secret"}) as client:
        assert client.get("/health").status_code == 503
        answer = client.post(CHAT, json=HELLO)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_died")
        answer = client.post("/v1/messages", json={**HELLO, "model": "mortal", "max_tokens": 5})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded_error")
        with client.stream("GET", "/v1/events") as events:
            event = next(line for line in events.iter_lines() if line.startswith("data: "))
        assert json.loads(event[6:])["error"]["code"] == "engine_died"
    assert httpx2.post(f"{server.base_url}{CHAT}", json=HELLO).status_code == 401
    for call in (runtime.suspend, runtime.resume, lambda number: runtime.start_server(number, ServerConfig())):
        with pytest.raises(EngineDied):
            call(handle)
    assert runtime.stop_server(handle).server.status == "stopped"
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.base_url}/health")
    runtime.unload(handle)
    assert said(runtime.start_server(load(runtime, crafted), ServerConfig()).server.base_url) == SCRIPTS["hello"].text()


def test_a_death_while_loading(runtime: Runtime, crafted: Path) -> None:
    """Whoever waits for the load learns of it."""
    caught: list[str] = []

    def wait() -> None:
        try:
            load(runtime, crafted)
        except LibMlxError as error:
            caught.append(error.code)

    waiting = threading.Thread(target=wait)
    waiting.start()
    pid = None
    while pid is None:  # it takes a tenth of a second to its first import
        time.sleep(0.001)
        handles = [runtime._find(status.handle) for status in runtime.statuses()]
        pid = next((handle.pid for handle in handles if isinstance(handle, IsolatedHandle)), None)
    os.kill(pid, signal.SIGKILL)
    waiting.join(10)
    assert caught == ["engine_died"]
    assert runtime.statuses() == []


def test_a_child_that_hangs(runtime: Runtime, crafted: Path) -> None:
    """A stop does not wait for it; unload ends it all the same, each within its deadline and two seconds."""
    handle = load(runtime, crafted)
    runtime.start_server(handle, ServerConfig())
    child = childs_pid(runtime, handle)
    os.kill(child, signal.SIGSTOP)
    for end in (runtime.stop_server, runtime.unload):
        begun = time.monotonic()
        end(handle, deadline_s=1.0)
        assert time.monotonic() - begun < 4
    assert not psutil.pid_exists(child)


def test_unload_cancels_a_load(runtime: Runtime, crafted: Path) -> None:
    """However early the unload comes, the process is gone within a second or two."""
    for delay in (0.0, 0.05, 0.3):
        handle = load(runtime, crafted, wait=False)
        time.sleep(delay)
        begun = time.monotonic()
        runtime.unload(handle)
        assert time.monotonic() - begun < 2


def test_a_child_that_hung_and_goes_on(runtime: Runtime, crafted: Path) -> None:
    """It stops its server then, as it was told, and the status follows."""
    handle = load(runtime, crafted)
    runtime.start_server(handle, ServerConfig())
    os.kill(childs_pid(runtime, handle), signal.SIGSTOP)
    runtime.stop_server(handle, deadline_s=0.1)
    assert runtime.status(handle).server.status == "running"
    os.kill(childs_pid(runtime, handle), signal.SIGCONT)
    eventually(lambda: runtime.status(handle).server.status == "stopped")


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.2])
def test_shutdown_cancels_a_load(runtime: Runtime, crafted: Path, delay: float) -> None:
    """Whoever waits for the load learns that it was cancelled."""
    caught: list[str] = []

    def wait() -> None:
        try:
            load(runtime, crafted)
        except LoadCancelled as error:
            caught.append(error.code)

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: bool(runtime.statuses()))
    time.sleep(delay)
    runtime.shutdown()
    waiting.join(10)
    assert caught == ["load_cancelled"]


def test_unloaded_before_it_was_started(runtime: Runtime, crafted: Path) -> None:
    """An unload that comes before the process is at once done, and the process is never started."""
    config = LoadConfig(model_path=str(crafted), isolation="process")
    handle = IsolatedHandle(1, config, runtime)
    begun = time.monotonic()
    handle.unload(deadline_s=5.0)
    handle.load()
    assert time.monotonic() - begun < 1
    assert handle.pid is None


def test_a_death_and_an_unload_at_once(runtime: Runtime, crafted: Path) -> None:
    """Nothing goes on listening at the server's address."""
    for delay in (0.0, 0.01, 0.03, 0.3):
        handle = load(runtime, crafted)
        server = runtime.start_server(handle, ServerConfig()).server
        os.kill(childs_pid(runtime, handle), signal.SIGKILL)
        time.sleep(delay)
        runtime.unload(handle)
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.base_url}/health")
    ours = ("lib_mlx-child", "lib_mlx-server")  # an unload waits for them, though not for ever
    eventually(lambda: not [one.name for one in threading.enumerate() if one.name.startswith(ours)])


@pytest.mark.parametrize("moment", ["starting", "stopping"])
def test_a_death_while_a_server_starts_or_stops(runtime: Runtime, crafted: Path, moment: str) -> None:
    """A start fails with `engine_died`, a stop succeeds; the status says that there is no server, and goes on so."""
    alive: dict[int, int] = {}

    def kill(handle: int, status: Any) -> None:
        if status is not None and status.server.status == moment and handle in alive:
            os.kill(alive.pop(handle), signal.SIGKILL)

    runtime.subscribe(kill)
    for _ in range(20):  # a child that is told of late has started its server before it dies
        handle = load(runtime, crafted)
        alive[handle] = childs_pid(runtime, handle)
        try:
            runtime.start_server(handle, ServerConfig())
        except EngineDied:
            break
        if moment == "stopping":
            runtime.stop_server(handle)
            break
        runtime.unload(handle)
    else:
        pytest.fail("no child has died in time")
    eventually(lambda: runtime.status(handle).model.status == "failed")
    assert runtime.status(handle).server.status == "stopped"


def test_every_model_has_died(runtime: Runtime, crafted: Path) -> None:
    """The dead server's address answers so to whatever name its clients used: an alias, a further model's."""
    handle = load(runtime, crafted, model_id="own")
    config = {"model_id": "served", "models": [{"model_path": str(crafted), "model_id": "other"}]}
    url = runtime.start_server(handle, parse_config(ServerConfig, config)).server.base_url
    os.kill(childs_pid(runtime, handle), signal.SIGKILL)
    eventually(lambda: runtime.status(handle).model.status == "failed")
    for name in ("served", "own", str(crafted), "other"):
        answer = httpx2.post(f"{url}{CHAT}", json={**HELLO, "model": name})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_died")


def test_no_descriptor_is_left(runtime: Runtime, crafted: Path) -> None:
    """A host that can open nothing more learns of a death all the same."""
    handle = load(runtime, crafted)
    runtime.start_server(handle, ServerConfig())
    child = childs_pid(runtime, handle)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        os.kill(child, signal.SIGKILL)
        eventually(lambda: runtime.status(handle).model.status == "failed")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert runtime.status(handle).server.status == "stopped"


def test_events_of_another_server_tell(runtime: Runtime, crafted: Path) -> None:
    """A server of the same process tells of all handles: of a load's progress, of a death."""
    own = runtime.load(LoadConfig(model_path=str(crafted))).handle
    server = runtime.start_server(own, ServerConfig()).server
    seen: list[dict[str, Any]] = []

    def listen() -> None:
        with httpx2.stream("GET", f"{server.base_url}/v1/events", timeout=30) as stream:
            name = ""
            for line in stream.iter_lines():
                name = line[7:] if line.startswith("event: ") else name
                if line.startswith("data: ") and name == "handle":
                    seen.append(json.loads(line[6:]))

    listening = threading.Thread(target=listen)
    listening.start()
    eventually(lambda: bool(seen))
    handle = load(runtime, crafted)
    os.kill(childs_pid(runtime, handle), signal.SIGKILL)
    eventually(lambda: seen[-1]["handle"] == handle and seen[-1]["model"]["status"] == "failed")
    states = list(dict.fromkeys(one["model"]["status"] for one in seen if one["handle"] == handle))
    assert states == ["loading", "ready", "failed"]
    assert len({one["model"]["progress"] for one in seen if one["handle"] == handle}) > 2
    runtime.unload(own)
    listening.join(10)
    assert not listening.is_alive()


HOST = """
import sys, time
import lib_mlx
model = lib_mlx.load_model(sys.argv[1], isolation="process")
print(model.start_server().base_url, flush=True)
time.sleep(60)
"""


def test_the_child_does_not_outlive_its_parent(crafted: Path) -> None:
    """A host that is killed takes the child with it, also one that is in the middle of an answer or stopped."""
    for stopped in (False, True):
        host = subprocess.Popen([sys.executable, "-c", HOST, str(crafted)], stdout=subprocess.PIPE, text=True)
        assert host.stdout is not None
        url = host.stdout.readline().strip()
        (child,) = psutil.Process(host.pid).children()
        loop = {"messages": [{"role": "user", "content": "loop"}], "stream": True}
        with httpx2.stream("POST", url + CHAT, json=loop) as stream:
            next(stream.iter_raw())
            if stopped:
                child.suspend()
            host.kill()
            host.wait()
            host.stdout.close()
            assert psutil.wait_procs([child], timeout=5)[1] == []


def test_a_host_without_mlx(crafted: Path) -> None:
    """The host's process loads neither MLX nor numpy nor a server."""
    code = HOST.replace("time.sleep(60)", "print(*sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, str(crafted)], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & {"mlx", "numpy", "uvicorn", "tokenizers"}
