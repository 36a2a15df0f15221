"""One server, many models: loaded at their first use, unloaded for idleness, by request and with the server."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

import lib_mlx
from lib_mlx.engine.worker import get_worker
from lib_mlx.in_process import InProcessHandle
from lib_mlx.runtime import get_runtime
from tests.checkpoints import SCRIPTS
from tests.server.test_server import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(crafted: Path, crafted_family: Callable[[str], Path]) -> Iterator[lib_mlx.Server]:
    """A server with a model of its own, one more in its configuration, and one that cannot be loaded."""
    models = [
        {"model_path": str(crafted_family("mistral")), "model_id": "other", "prefix_cache_bytes": 0},
        {"model_path": "/nowhere/broken"},
    ]
    with lib_mlx.load_model(crafted, model_id="own") as model, model.start_server(models=models) as server:
        yield server


@pytest.fixture
def many(served: lib_mlx.Server) -> Iterator[httpx2.Client]:
    """A client of it."""
    with httpx2.Client(base_url=served.base_url, timeout=30) as client:
        yield client


def hello(model: str, **fields: Any) -> dict[str, Any]:
    """A request to a model."""
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}


def status(client: httpx2.Client, model: str) -> str:
    """What has become of a model."""
    return str(client.get(f"/v1/models/{model}").json()["status"])


def test_loaded_at_the_first_use(served: lib_mlx.Server, many: httpx2.Client) -> None:
    """Both models are listed; the further one is loaded when it is asked for, once for all who ask, and stays."""
    assert [model["id"] for model in many.get("/v1/models").json()["data"]] == ["own", "other", "broken"]
    shown = many.get("/v1/models/other").json()
    assert (shown["status"], shown["context_length"]) == ("available", 4096)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: httpx2.post(served.base_url + CHAT, json=hello("other")), range(6)))
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {SCRIPTS["hello"].text()}
    assert status(many, "other") == "ready"
    assert many.post(CHAT, json=hello("own")).json()["model"] == "own"


def test_unloading_and_loading_by_request(served: lib_mlx.Server, many: httpx2.Client) -> None:
    """OpenAI's client unloads by its delete; loading waits, or does not."""
    assert many.post("/v1/models/other/load").json()["status"] == "ready"
    with openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="x", max_retries=0) as client:
        assert client.models.delete("other").deleted
    assert status(many, "other") == "available"
    begun = many.post("/v1/models/other/load", json={"wait": False})
    assert (begun.status_code, begun.json()["status"] in {"loading", "ready"}) == (202, True)
    eventually(lambda: status(many, "other") == "ready")
    own = many.delete("/v1/models/own")
    assert (own.status_code, own.json()["error"]["code"]) == (400, "invalid_argument")
    for method, path in (("DELETE", "/v1/models/x"), ("POST", "/v1/models/x/load"), ("GET", "/v1/models/x")):
        assert many.request(method, path).json()["error"]["code"] == "model_not_found"


def test_a_busy_model_is_not_unloaded(many: httpx2.Client) -> None:
    """It is a 409 while it answers."""
    loop = {"model": "other", "messages": [{"role": "user", "content": "loop"}], "stream": True}
    with many.stream("POST", CHAT, json=loop) as stream:
        chunks = stream.iter_bytes()
        next(chunks)
        busy = many.delete("/v1/models/other")
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "model_busy")
    eventually(lambda: many.delete("/v1/models/other").status_code == 200)


def test_a_model_that_cannot_be_loaded(many: httpx2.Client) -> None:
    """The client is told why, and the model's state keeps it."""
    for _ in range(2):
        answer = many.post(CHAT, json=hello("broken"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    shown = many.get("/v1/models/broken").json()
    assert (shown["status"], shown["error"]["code"]) == ("failed", "model_not_found")
    assert many.get("/health").json()["in_flight"] == 0


def test_no_room(crafted: Path) -> None:
    """Where a model does not fit beside what is in use, it is a 507 with the figures."""
    further = {"model_path": str(crafted), "model_id": "other"}
    with (
        lib_mlx.load_model(crafted, model_id="own") as model,
        model.start_server(models=[further], memory_limit_bytes=1_000_000) as server,
    ):
        answer = httpx2.post(server.base_url + CHAT, json=hello("other"), timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_memory")
        assert "the limit is 0.00 GB" in answer.json()["error"]["message"]
        assert httpx2.post(server.base_url + CHAT, json=hello("own"), timeout=30).status_code == 200


def test_idle_models_go(crafted: Path) -> None:
    """After `keep_alive` without a request a further model is unloaded; the server's own stays."""
    further = {"model_path": str(crafted), "model_id": "other"}
    with (
        lib_mlx.load_model(crafted, model_id="own") as model,
        model.start_server(models=[further], keep_alive="200ms") as server,
        httpx2.Client(base_url=server.base_url, timeout=30) as client,
    ):
        assert client.post(CHAT, json=hello("other")).status_code == 200
        eventually(lambda: status(client, "other") == "available")
        assert status(client, "own") == "ready"
        assert client.post(CHAT, json=hello("other", keep_alive="1h")).status_code == 200
        assert 3500 < client.get("/v1/models/other").json()["expires_in_s"] <= 3600


def test_stopping_while_a_model_loads(crafted: Path) -> None:
    """Those who wait for it are told that the server stops, and nothing of it stays."""
    further = {"model_path": str(crafted), "model_id": "other"}
    threads = threading.active_count()
    with lib_mlx.load_model(crafted, model_id="own") as model:
        server = model.start_server(models=[further])
        held = threading.Event()
        blocked = get_worker().submit(held.wait, 10)
        with ThreadPoolExecutor(2) as pool:
            answer = pool.submit(httpx2.post, server.base_url + CHAT, json=hello("other"), timeout=30)
            eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 1)
            stopping = pool.submit(server.stop)
            assert answer.result(10).json()["error"]["code"] == "shutting_down"
            held.set()
            stopping.result(10)
        blocked.result()
    eventually(lambda: threading.active_count() <= threads + 1)


def test_stopping_does_not_wait_for_a_busy_engine(crafted: Path) -> None:
    """A stop keeps its deadline while the engine is at something long; further models are freed after that."""
    further = {"model_path": str(crafted), "model_id": "other"}
    with lib_mlx.load_model(crafted, model_id="own") as model:
        server = model.start_server(models=[further])
        handle = get_runtime()._find(model._handle)
        assert isinstance(handle, InProcessHandle)
        registry = handle._registry
        assert registry is not None
        assert httpx2.post(server.base_url + CHAT, json=hello("other"), timeout=30).status_code == 200
        busy = get_worker().submit(time.sleep, 4)
        begun = time.monotonic()
        get_runtime().stop_server(model._handle, 1.0)
        assert time.monotonic() < begun + 3
        assert not busy.done()
        eventually(lambda: registry.find("other").status == "available", 10)


@pytest.mark.parametrize(("profile", "wanted", "given"), [("short", None, 3), ("short", 2, 2), ("short", 50, 3)])
def test_profiles(crafted: Path, profile: str, wanted: int | None, given: int) -> None:
    """A profile bounds an answer, whatever it asks for; an unknown one is refused by the names there are."""
    with (
        lib_mlx.load_model(crafted) as model,
        model.start_server(profiles={"short": {"max_tokens": 3}}) as server,
        httpx2.Client(base_url=server.base_url, timeout=30) as client,
    ):
        body = {"messages": [{"role": "user", "content": "loop"}], "profile": profile}
        answer = client.post(CHAT, json=body if wanted is None else {**body, "max_tokens": wanted}).json()
        assert answer["usage"]["completion_tokens"] == given
        assert client.post(CHAT, json=hello(None, profile="fast")).status_code == 200  # type: ignore[arg-type]
        unknown = client.post(CHAT, json={**body, "profile": "x"}).json()["error"]
        assert (unknown["param"], "balanced, fast, quality, short" in unknown["message"]) == ("profile", True)
