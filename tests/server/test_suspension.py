"""A suspended server: nothing is evaluated; requests wait, or fail if the host wants that."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

import lib_mlx
from lib_mlx.engine.worker import get_worker
from lib_mlx.runtime import get_runtime
from tests.checkpoints import SCRIPTS
from tests.server.test_server import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHAT = "/v1/chat/completions"
LOOP = {"messages": [{"role": "user", "content": "loop"}], "stream": True}


def hello(model: str) -> dict[str, Any]:
    """A request to a model."""
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def model(crafted: Path) -> Iterator[lib_mlx.Model]:
    """A model of the test's own."""
    with lib_mlx.load_model(crafted, model_id="own", prefix_cache_bytes=0) as loaded:
        yield loaded


def further(crafted: Path) -> list[dict[str, Any]]:
    """Another model of the server, loaded on demand."""
    return [{"model_path": str(crafted), "model_id": "other", "prefix_cache_bytes": 0}]


def suspend(model: lib_mlx.Model) -> None:
    get_runtime().suspend(model._handle)


def resume(model: lib_mlx.Model) -> None:
    get_runtime().resume(model._handle)


def test_requests_wait(model: lib_mlx.Model, crafted: Path) -> None:
    """A stream pauses and goes on; new requests, also for a model that must be loaded first, are answered later."""
    server = model.start_server(models=further(crafted))
    answers: dict[str, Any] = {}

    def ask(name: str) -> None:
        answers[name] = httpx2.post(server.base_url + CHAT, json=hello(name), timeout=30).json()

    with httpx2.stream("POST", server.base_url + CHAT, json=LOOP, timeout=30) as stream:
        pieces = stream.iter_raw()
        next(pieces)
        suspend(model)
        asking = [threading.Thread(target=ask, args=(name,)) for name in ("own", "other")]
        for thread in asking:
            thread.start()
        busy = get_worker().run(time.thread_time)
        health = httpx2.get(f"{server.base_url}/health")
        assert (health.status_code, health.json()["status"]) == (200, "suspended")
        time.sleep(0.5)
        assert answers == {}
        assert get_worker().run(time.thread_time) - busy < 0.05
        states = {one["id"]: one["status"] for one in httpx2.get(f"{server.base_url}/v1/models").json()["data"]}
        assert states == {"own": "suspended", "other": "available"}
        resume(model)
        assert sum(len(piece) for piece, _ in zip(pieces, range(20), strict=False)) > 0
    for thread in asking:
        thread.join(30)
    said = {name: answer["choices"][0]["message"]["content"] for name, answer in answers.items()}
    assert said == dict.fromkeys(("own", "other"), SCRIPTS["hello"].text())
    assert httpx2.get(f"{server.base_url}/health").json()["status"] == "ok"


def test_requests_fail(model: lib_mlx.Model, crafted: Path) -> None:
    """A stream ends with the error, what waits for a model too, and new requests get it at once, in their dialect."""
    server = model.start_server(models=further(crafted), suspended_requests="fail")
    with httpx2.stream("POST", server.base_url + CHAT, json=LOOP, timeout=30) as stream:
        pieces = stream.iter_raw()
        next(pieces)
        suspend(model)
        rest = b"".join(pieces)
    last, done = [line for line in rest.decode().splitlines() if line][-2:]
    assert (json.loads(last[6:])["error"]["code"], done) == ("suspended", "data: [DONE]")
    for path in (CHAT, "/v1/responses", "/v1/messages", "/api/chat", "/v1/embeddings"):
        body = {"input": "x", "model": "own"} if path in {"/v1/responses", "/v1/embeddings"} else hello("own")
        answer = httpx2.post(server.base_url + path, json={**body, **({"max_tokens": 3} if "messages" in path else {})})
        assert (answer.status_code, "suspended by its host" in answer.text) == (503, True), answer.text
        assert answer.headers["retry-after"] == "1"
    assert httpx2.post(server.base_url + CHAT, json=hello("other")).status_code == 503
    health = httpx2.get(f"{server.base_url}/health")
    assert (health.status_code, health.json()["status"]) == (503, "suspended")
    eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 0)
    resume(model)
    assert httpx2.post(server.base_url + CHAT, json=hello("other"), timeout=30).status_code == 200


def test_a_load_under_way(model: lib_mlx.Model, crafted: Path) -> None:
    """It is given up, and begins again when the server goes on; whoever waits for it gets an answer."""
    server = model.start_server(models=further(crafted))
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx2.post(server.base_url + CHAT, json=hello("other"), timeout=30).status_code)

    def status() -> str:
        return str(httpx2.get(f"{server.base_url}/v1/models/other").json()["status"])

    for delay in (0.0, 0.01, 0.05, 0.1):
        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(delay)
        suspend(model)
        eventually(lambda: status() in {"available", "suspended"})
        busy = get_worker().run(time.thread_time)
        time.sleep(0.1)
        assert get_worker().run(time.thread_time) - busy < 0.05
        resume(model)
        asking.join(30)
        httpx2.delete(f"{server.base_url}/v1/models/other")
    assert answers == [200] * 4


def test_a_server_that_starts_suspended(model: lib_mlx.Model, crafted: Path) -> None:
    """A server started on a suspended model is suspended with all its models."""
    suspend(model)
    server = model.start_server(models=further(crafted), suspended_requests="fail")
    assert httpx2.post(server.base_url + CHAT, json=hello("other")).json()["error"]["code"] == "suspended"
    resume(model)
    assert httpx2.post(server.base_url + CHAT, json=hello("own")).status_code == 200


def test_unloading_while_suspended(model: lib_mlx.Model, crafted: Path) -> None:
    """A stop and an unload end what waits, promptly."""
    server = model.start_server(models=further(crafted))
    suspend(model)
    answers: list[int] = []

    def ask(name: str) -> None:
        answers.append(httpx2.post(server.base_url + CHAT, json=hello(name), timeout=30).status_code)

    asking = [threading.Thread(target=ask, args=(name,)) for name in ("own", "other")]
    for thread in asking:
        thread.start()
    eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 2)
    begun = time.monotonic()
    model.unload()
    assert time.monotonic() - begun < 3
    for thread in asking:
        thread.join(10)
    assert answers == [503, 503]


def test_suspended_and_resumed_at_once(model: lib_mlx.Model) -> None:
    """Whoever comes last, status, model and server agree on what they are."""
    server = model.start_server()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(100):
            together = threading.Barrier(4)

            def act(function: Callable[[lib_mlx.Model], None], together: threading.Barrier = together) -> None:
                together.wait()
                for _ in range(3):
                    function(model)

            threads = [threading.Thread(target=act, args=(one,)) for one in (suspend, resume) * 2]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            suspended = get_runtime().status(model._handle).model.status == "suspended"
            assert get_runtime().engine(model._handle).suspended == suspended
    finally:
        sys.setswitchinterval(interval)
    assert httpx2.get(f"{server.base_url}/health").json()["status"] == ("suspended" if suspended else "ok")
