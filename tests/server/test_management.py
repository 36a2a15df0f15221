"""Looking after a server: health, status, events, metrics, ending requests."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

import lib_mlx
from lib_mlx.runtime import get_runtime
from lib_mlx.server.metrics import Histogram
from tests.server.test_server import eventually, scheduler_depth

if TYPE_CHECKING:
    from pathlib import Path

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
LOOP: dict[str, Any] = {"messages": [{"role": "user", "content": "loop"}], "stream": True}
CHAT = "/v1/chat/completions"


def test_health_and_life(http: httpx2.Client) -> None:
    """All three say yes, and since when."""
    assert http.get("/livez").json() == {"status": "ok"}
    for path in ("/health", "/v1/health"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")
        assert answer.json()["uptime_s"] > 0


def test_status(http: httpx2.Client) -> None:
    """It tells of models, memory, queue and cache."""
    for _ in range(2):
        http.post(CHAT, json=HELLO)
    status = http.get("/v1/status").json()
    assert status["pid"] == os.getpid()
    (model,) = status["models"]
    assert (model["id"], model["status"], model["requests"], model["context_length"]) == ("crafted", "ready", 0, 4096)
    assert model["memory_bytes"] > 0
    assert status["memory"]["resident_bytes"] > 10_000_000
    assert status["memory"]["available_bytes"] > 0
    assert status["queue"] == {"in_flight": 0, "waiting": 0, "limit": 64}
    assert 0 < status["cache"]["hit_rate"] <= 1


def families(http: httpx2.Client) -> dict[str, Any]:
    """What `/metrics` says, parsed by Prometheus' own client."""
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(found: dict[str, Any], family: str, sample: str = "", **labels: str) -> float:
    """The sum of the samples of a family that have these labels."""
    return sum(
        one.value
        for one in found[family].samples
        if one.name == (sample or family) and labels.items() <= one.labels.items()
    )


def test_metrics(http: httpx2.Client) -> None:
    """Requests, tokens and times are counted by model, those that failed and those nobody waited for as well."""
    before = families(http)
    answer = http.post(CHAT, json=HELLO).json()
    with http.stream("POST", CHAT, json=LOOP) as stream:
        chunks = stream.iter_bytes()
        next(chunks)
    eventually(lambda: http.get("/health").json()["in_flight"] == 0)
    after = families(http)

    def grown(family: str, sample: str = "", **labels: str) -> float:
        return value(after, family, sample, **labels) - value(before, family, sample, **labels)

    assert grown("lib_mlx_requests", "lib_mlx_requests_total", outcome="stop", gen_ai_request_model="crafted") == 1
    assert grown("lib_mlx_requests", "lib_mlx_requests_total", outcome="cancelled") == 1
    tokens = "gen_ai_server_token_usage"
    assert grown(tokens, f"{tokens}_total", gen_ai_token_type="output") >= answer["usage"]["completion_tokens"]
    for name in ("request_duration", "time_to_first_token", "time_per_output_token"):
        family = f"gen_ai_server_{name}_seconds"
        assert grown(family, f"{family}_count") == 1
        assert grown(family, f"{family}_sum") > 0
    assert value(after, "lib_mlx_requests_in_flight") == 0
    assert value(after, "process_resident_memory_bytes") > 10_000_000


def test_histograms() -> None:
    """Buckets are cumulative, and a bound belongs to its own bucket."""
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 3.0):
        histogram.observe(seconds)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 6.0


def test_request_ids(http: httpx2.Client) -> None:
    """A client's id comes back, another gets one; what is no id is replaced."""
    assert http.get("/livez", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for given in ({}, {"X-Request-Id": "no id"}, {"X-Request-Id": "x" * 200}):
        assert http.get("/livez", headers=given).headers["x-request-id"].startswith("req_")
    failed = http.get("/v1/nothing", headers={"X-Request-Id": "mine-2"})
    assert failed.headers["x-request-id"] == failed.headers["request-id"] == "mine-2"


@pytest.mark.parametrize("stream", [True, False])
def test_cancelling_a_request(
    server: lib_mlx.Server, http: httpx2.Client, crafted_model: lib_mlx.Model, stream: bool
) -> None:
    """Whoever knows its id ends it; its client is told, and the slot is free."""
    answers: list[httpx2.Response] = []

    def ask() -> None:
        headers = {"X-Request-Id": "to-cancel"}
        answers.append(httpx2.post(server.base_url + CHAT, json={**LOOP, "stream": stream}, headers=headers))

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: scheduler_depth(crafted_model) == 1)
    answer = http.delete("/v1/requests/to-cancel")
    assert answer.json() == {"id": "to-cancel", "object": "request", "cancelled": True}
    asking.join(10)
    assert "cancelled" in answers[0].text
    assert answers[0].status_code == (200 if stream else 499)
    eventually(lambda: http.get("/health").json()["in_flight"] == 0)
    again = http.delete("/v1/requests/to-cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "fields", "client"),
    [
        (CHAT, {"user": "ann"}, "user ann"),
        (CHAT, {"user": "ann", "safety_identifier": "bob"}, "user bob"),
        ("/v1/responses", {"safety_identifier": "bob"}, "user bob"),
        ("/v1/completions", {"user": "ann"}, "user ann"),
        ("/v1/messages", {"metadata": {"user_id": "eve"}}, "user eve"),
        ("/v1/messages", {}, None),
        ("/api/chat", {}, None),
        (CHAT, {}, None),
    ],
)
def test_who_asks(
    http: httpx2.Client,
    crafted_model: lib_mlx.Model,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fields: dict[str, Any],
    client: str | None,
) -> None:
    """The engine, where clients take turns, is told the user, as far as the request names one; else the connection."""
    engine = get_runtime().engine(crafted_model._handle)
    seen: list[str] = []
    prepare = engine.prepare

    def watched(request: Any) -> Any:
        seen.append(request.client)
        return prepare(request)

    monkeypatch.setattr(engine, "prepare", watched)
    said: dict[str, Any] = {"messages": HELLO["messages"]}
    if path.endswith("responses"):
        said = {"input": "hello"}
    elif path.endswith("completions") and path != CHAT:
        said = {"prompt": "hello"}
    elif not path.startswith("/api"):
        said["max_tokens"] = 3
    for _ in range(2):
        assert http.post(path, json={"model": "crafted", **said, **fields}).status_code == 200
    with httpx2.Client(base_url=http.base_url) as other:
        assert other.post(path, json={"model": "crafted", **said, **fields}).status_code == 200
    if client is not None:
        assert seen == [client] * 3
    else:
        assert seen[0] == seen[1] != seen[2]
        assert seen[0].startswith("connection ")


def test_two_requests_of_one_id(server: lib_mlx.Server, http: httpx2.Client, crafted_model: lib_mlx.Model) -> None:
    """A client that reuses an id loses nothing: each request is counted out by itself."""
    headers = {"X-Request-Id": "twice"}
    with (
        httpx2.Client(base_url=server.base_url, headers=headers) as client,
        client.stream("POST", CHAT, json=LOOP) as one,
        client.stream("POST", CHAT, json=LOOP) as two,
    ):
        one_chunks = one.iter_bytes()
        next(one_chunks)
        two_chunks = two.iter_bytes()
        next(two_chunks)
        eventually(lambda: scheduler_depth(crafted_model) == 2)
    eventually(lambda: http.get("/health").json()["in_flight"] == 0)


def test_events(crafted: Path) -> None:
    """A listener gets the models as they are and then every change; a stop ends the stream."""
    further = {"model_path": str(crafted), "model_id": "other", "prefix_cache_bytes": 0}
    seen: list[dict[str, Any]] = []
    with lib_mlx.load_model(crafted, model_id="own") as model:
        server = model.start_server(models=[further])

        def listen() -> None:
            with (
                httpx2.Client(base_url=server.base_url, timeout=30) as client,
                client.stream("GET", "/v1/events") as stream,
            ):
                seen.extend(json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))

        listening = threading.Thread(target=listen)
        listening.start()
        eventually(lambda: httpx2.get(f"{server.base_url}/livez").status_code == 200)
        time.sleep(0.2)
        assert httpx2.post(f"{server.base_url}/v1/models/other/load", timeout=30).json()["status"] == "ready"
        # Whoever asked for the load may know before those who listen; a stop would be quicker than the news.
        eventually(lambda: any((one.get("id"), one.get("status")) == ("other", "ready") for one in list(seen)), 10)
        begun = time.monotonic()
        server.stop()
        listening.join(10)
        assert time.monotonic() - begun < 3
    assert [(one["id"], one["status"]) for one in seen[:2]] == [("own", "ready"), ("other", "available")]
    changes = list(dict.fromkeys(one["status"] for one in seen if one.get("id") == "other"))
    assert changes[:3] == ["available", "loading", "ready"]
    assert any(one.get("model", {}).get("model_id") == "own" for one in seen)  # of the process's handles
