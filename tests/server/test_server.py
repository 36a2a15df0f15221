"""The server as a whole: routes, hostile input, admission, disconnects, stopping."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lib_mlx
from lib_mlx.config import ServerConfig
from lib_mlx.engine.worker import get_worker
from lib_mlx.runtime import get_runtime

if TYPE_CHECKING:
    from pathlib import Path

LOOP: dict[str, Any] = {"messages": [{"role": "user", "content": "loop"}], "stream": True}
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


def scheduler_depth(model: lib_mlx.Model) -> int:
    """Requests the engine is working on."""
    return len(get_runtime().engine(model._handle)._scheduler._everyone())


def eventually(condition: Any, timeout_s: float = 5.0) -> None:
    """Wait until `condition()` holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never became true"
        time.sleep(0.005)


def test_models(http: httpx2.Client) -> None:
    """The served model is listed and found under its id; any other name is a 404."""
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["context_length"]) == ("crafted", "model", 4096)
    assert http.get("/v1/models/crafted").json() == model
    missing = http.get("/v1/models/other/name")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    wrong = http.post(CHAT, json={**HELLO, "model": "other"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")


def test_the_bare_base_url_works_too(server: lib_mlx.Server) -> None:
    """Clients given the base URL without /v1 find the same routes."""
    with httpx2.Client(base_url=server.base_url) as http:
        assert http.post("/chat/completions", json=HELLO).status_code == 200
        assert http.get("/models").status_code == 200


def test_health(http: httpx2.Client) -> None:
    """Health names the models and the requests in flight."""
    health = http.get("/health").json()
    assert (health["status"], health["models"], health["in_flight"]) == ("ok", ["crafted"], 0)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", f"{CHAT}/", 404, "not_found"),
    ],
)
def test_unknown_routes_and_methods(http: httpx2.Client, method: str, path: str, status: int, code: str) -> None:
    """They are answered in OpenAI's error shape."""
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{}", None, 415, "unsupported_media_type"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"", "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_json"),
        (b"{", "application/json", 400, "invalid_json"),
        (b'{"messages": NaN}', "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b'{"messages": "\xff"}', "application/json", 400, "invalid_json"),
        (b'{"messages": "\\ud800"}', "application/json", 400, "invalid_json"),
        (b"{}", "application/json; charset=utf-8", 400, "invalid_argument"),
    ],
)
def test_bad_bodies(http: httpx2.Client, content: bytes, content_type: str | None, status: int, code: str) -> None:
    """Whatever is wrong with a body is a client error with a code."""
    headers = {"content-type": content_type} if content_type else {}
    answer = http.post(CHAT, content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "messages", [1] * 200_000),
        (CHAT, "logit_bias", {str(number): "x" for number in range(200_000)}),
        (CHAT, "metadata", {str(number): number for number in range(200_000)}),
        ("/v1/completions", "prompt", [1.5] * 200_000),
        ("/v1/embeddings", "input", [True] * 200_000),
        ("/v1/messages", "messages", ["x"] * 200_000),
        ("/api/embed", "input", [1] * 200_000),
    ],
)
def test_a_body_with_many_faults(http: httpx2.Client, path: str, field: str, value: Any) -> None:
    """Only the first is looked at: describing all takes seconds, and gigabytes for a body of megabytes."""
    begun = time.process_time()
    rest = {**HELLO, "max_tokens": 1} if path in {CHAT, "/v1/messages"} else {}
    answer = http.post(path, json={"model": "crafted", **rest, field: value}, timeout=30)
    assert time.process_time() < begun + 1.5
    assert answer.status_code == 400
    assert field in answer.text


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{" + ",".join(f'"f{number}":1' for number in range(200_000)) + "}", "invalid_argument"),
        ('{"messages":[' + ",".join(["{}"] * 200_000) + "]}", "invalid_json"),
        ('{"metadata":' + '{"a":[' * 40 + "[]," * 200_000 + "[]" + "]}" * 40 + "}", "invalid_json"),
    ],
)
def test_a_body_of_many_parts(http: httpx2.Client, content: str, code: str) -> None:
    """It is refused before each is made into an object."""
    begun = time.process_time()
    answer = http.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert time.process_time() < begun + 1.5
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_a_body_over_the_limit(server: lib_mlx.Server) -> None:
    """An oversized body is refused while it is still arriving."""
    headers = {"content-type": "application/json"}
    chunks = (b" " * (1 << 20) for _ in range((ServerConfig().body_limit_bytes >> 20) + 2))
    with httpx2.Client(base_url=server.base_url, timeout=30) as http:
        answer = http.post(CHAT, content=chunks, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["messages", "input", "model", "stream", "stop", "tools", "tool_choice", "temperature", "seed", "logit_bias", "n"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([CHAT, "/v1/responses"]), body=st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_json_at_any_route_is_a_client_error(http: httpx2.Client, path: str, body: dict[str, Any]) -> None:
    """Random JSON never makes a 500; every error has a code and a message."""
    if isinstance(body.get("input"), str):
        body["max_output_tokens"] = 4
    answer = http.post(path, json=body)
    assert answer.status_code in {200, 400, 404}
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"]
        assert error["code"] in {"invalid_argument", "unsupported_feature", "model_not_found"}


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_on_the_socket_leave_the_server_alive(server: lib_mlx.Server, data: bytes) -> None:
    """Bytes that are not HTTP close that connection and nothing else."""
    with socket.create_connection((server.host, server.port), timeout=5) as raw:
        raw.sendall(data + b"\r\n\r\n")
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(4096):
            pass
    assert httpx2.get(f"{server.base_url}/health").status_code == 200


def test_the_queue_limit(crafted: Path) -> None:
    """With as many requests in flight as allowed, one more is 429 with Retry-After; afterwards there is room."""
    with lib_mlx.load_model(crafted) as model, model.start_server(queue_limit=1) as server:
        with httpx2.Client(base_url=server.base_url, timeout=30) as http, http.stream("POST", CHAT, json=LOOP) as busy:
            chunks = busy.iter_bytes()
            next(chunks)
            full = http.post(CHAT, json=HELLO)
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            assert int(full.headers["retry-after"]) >= 1
            assert full.json()["error"]["type"] == "rate_limit_error"
        eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 0)
        assert httpx2.post(f"{server.base_url}{CHAT}", json=HELLO).status_code == 200


def test_an_error_frees_its_slot(crafted: Path) -> None:
    """Refused requests do not use up the queue."""
    with lib_mlx.load_model(crafted) as model, model.start_server(queue_limit=1) as server:
        for _ in range(3):
            bad = httpx2.post(f"{server.base_url}{CHAT}", json={**HELLO, "logit_bias": {"999999": 1}})
            assert bad.status_code == 400
        assert httpx2.post(f"{server.base_url}{CHAT}", json=HELLO).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(
    server: lib_mlx.Server, crafted_model: lib_mlx.Model, stream: bool
) -> None:
    """When the connection closes, streamed or not, generation stops."""
    body = json.dumps({**LOOP, "stream": stream}).encode()
    head = (f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    head += (f"Content-Length: {len(body)}", "", "")
    with socket.create_connection((server.host, server.port)) as raw:
        raw.sendall("\r\n".join(head).encode() + body)
        eventually(lambda: scheduler_depth(crafted_model) == 1)
        if stream:
            assert raw.recv(100)
    eventually(lambda: scheduler_depth(crafted_model) == 0)
    eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 0)


def test_a_client_that_leaves_during_prefill_frees_its_slot(
    server: lib_mlx.Server, crafted_model: lib_mlx.Model
) -> None:
    """Also before the first token."""
    long = {"messages": [{"role": "user", "content": "loop " + "x" * 3900}], "stream": True}
    for _ in range(3):
        with httpx2.Client(base_url=server.base_url) as http, http.stream("POST", CHAT, json=long):
            pass
    eventually(lambda: scheduler_depth(crafted_model) == 0)


def test_many_disconnects_leave_nothing_behind(server: lib_mlx.Server, crafted_model: lib_mlx.Model) -> None:
    """Clients that come and go at random leave no slot taken and no request running."""

    def visit(number: int) -> None:
        with (
            httpx2.Client(base_url=server.base_url, timeout=30) as http,
            http.stream("POST", CHAT, json=LOOP) as answer,
        ):
            for _, _ in zip(range(number % 5), answer.iter_bytes(), strict=False):
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(60)))
    eventually(lambda: scheduler_depth(crafted_model) == 0)
    eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 0)


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_stopping_ends_streams_with_their_terminal_event(crafted: Path, path: str) -> None:
    """A stop during a stream sends the dialect's error and [DONE], in well under the deadline."""
    body = LOOP if path == CHAT else {"input": "loop", "stream": True}
    with lib_mlx.load_model(crafted) as model:
        server = model.start_server()
        with (
            httpx2.Client(base_url=server.base_url, timeout=30) as http,
            http.stream("POST", path, json=body) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            begun = time.monotonic()
            stopper = threading.Thread(target=server.stop)
            stopper.start()
            rest = [line for line in lines if line.startswith("data: ")]
            stopper.join()
        assert time.monotonic() - begun < 3
        assert rest[-1] == "data: [DONE]"
        assert "shutting_down" in rest[-2]
        assert ("response.failed" in rest[-2]) == (path == "/v1/responses")
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.base_url}/health")


def test_a_stopped_server_leaves_no_thread_and_no_port(crafted: Path) -> None:
    """Starting and stopping many times leaves the threads as they were, and the port free."""
    with lib_mlx.load_model(crafted) as model:
        model.start_server().stop()
        before = threading.active_count()
        for _ in range(10):
            server = model.start_server()
            assert httpx2.post(f"{server.base_url}{CHAT}", json=HELLO).status_code == 200
            server.stop()
        eventually(lambda: threading.active_count() <= before)
        with model.start_server(port=server.port) as again:
            assert again.port == server.port


def test_a_body_nested_too_deep(http: httpx2.Client) -> None:
    """Nesting beyond what can be echoed is refused at once, streamed or not, and takes no slot for good."""
    parameters: dict[str, Any] = {}
    for _ in range(300):
        parameters = {"properties": parameters}
    tools = [{"type": "function", "name": "f", "parameters": parameters}]
    for stream in (True, False):
        answer = http.post("/v1/responses", json={"input": "hello", "tools": tools, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert http.get("/health").json()["in_flight"] == 0


def test_an_answer_that_cannot_be_rendered(
    http: httpx2.Client, crafted_model: lib_mlx.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in mid-stream is told to the client and frees the slot; the stream still ends with [DONE]."""

    def broken(*_: object) -> None:
        raise TypeError("boom")

    with monkeypatch.context() as patch:
        patch.setattr("lib_mlx.server.openai.chat.chat_usage", broken)
        body = {**LOOP, "max_tokens": 3, "stream_options": {"include_usage": True}}
        lines = http.post(CHAT, json=body).text.strip().split("\n\n")
    assert '"code":"internal"' in lines[-2]
    assert lines[-1] == "data: [DONE]"
    eventually(lambda: scheduler_depth(crafted_model) == 0)
    assert http.get("/health").json()["in_flight"] == 0


def test_stopping_does_not_wait_for_a_busy_engine(crafted: Path) -> None:
    """A stop ends its streams properly even while the engine thread is busy with another model."""
    with lib_mlx.load_model(crafted) as model:
        server = model.start_server()
        with (
            httpx2.Client(base_url=server.base_url, timeout=30) as http,
            http.stream("POST", CHAT, json=LOOP) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            busy = get_worker().submit(time.sleep, 4)
            stopper = threading.Thread(target=server.stop)
            stopper.start()
            rest = [line for line in lines if line.startswith("data: ")]
            stopper.join()
        assert not busy.done()
        assert rest[-1] == "data: [DONE]"
        assert "shutting_down" in rest[-2]
        busy.result()


def test_requests_that_wait_to_be_tokenised_are_told_of_a_stop(crafted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get a 503 in the dialect's shape, all of them."""
    with lib_mlx.load_model(crafted) as model:
        engine = get_runtime().engine(model._handle)
        prepare, held = engine.prepare, threading.Event()

        def slow(request: Any) -> Any:
            held.wait(1)
            return prepare(request)

        monkeypatch.setattr(engine, "prepare", slow)
        server = model.start_server()
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(httpx2.post, f"{server.base_url}{CHAT}", json=HELLO, timeout=30) for _ in range(4)]
            eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 4)
            server.stop()
            results = [(answer.result().status_code, answer.result().json()["error"]["code"]) for answer in answers]
    assert results == [(503, "shutting_down")] * 4


def test_a_comment_keeps_an_idle_stream_alive(
    server: lib_mlx.Server, crafted_model: lib_mlx.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing comes from the model, comment lines do."""
    monkeypatch.setattr("lib_mlx.server.sse.KEEP_ALIVE_S", 0.05)
    engine = get_runtime().engine(crafted_model._handle)
    engine.suspend()
    try:
        with (
            httpx2.Client(base_url=server.base_url, timeout=30) as http,
            http.stream("POST", CHAT, json=LOOP) as answer,
        ):
            assert next(line for line in answer.iter_lines() if line.startswith(":")) == ": keep-alive"
    finally:
        engine.resume()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"model": "m", "max_tokens": 4000, "messages": LOOP["messages"], "stream": True}),
        ("/api/chat", {"model": "m", "messages": LOOP["messages"]}),
        ("/v1/completions", {"prompt": "<|go:loop|>", "max_tokens": 4000, "stream": True}),
    ],
)
def test_stopping_ends_the_streams_of_every_dialect(crafted: Path, path: str, body: dict[str, Any]) -> None:
    """The last that comes is the dialect's error, with our code, and the connection ends well."""
    with lib_mlx.load_model(crafted, model_id="m") as model:
        server = model.start_server()
        with (
            httpx2.Client(base_url=server.base_url, timeout=30) as http,
            http.stream("POST", path, json=body) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            stopper = threading.Thread(target=server.stop)
            stopper.start()
            rest = [line for line in lines if line and line != "data: [DONE]"]
            stopper.join()
    assert "shutting_down" in rest[-1]
