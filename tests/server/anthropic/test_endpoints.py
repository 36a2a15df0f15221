"""The served dialect, through Anthropic's own client and over plain HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import httpx2
import pytest
from anthropic.types import Message, MessageTokensCount
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import lib_mlx
from lib_mlx.runtime import get_runtime
from tests.checkpoints import SCRIPTS
from tests.server.anthropic.conftest import new_client
from tests.server.test_server import eventually, scheduler_depth

if TYPE_CHECKING:
    from pathlib import Path

    from anthropic.types import ContentBlock

TOOL: Any = {"name": "get_weather", "input_schema": {"type": "object", "properties": {}}}
CITY: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
COLD = {"temperature": 0}
ALL_SCRIPTS = [name for name in SCRIPTS if name != "loop"]
MESSAGES = "/v1/messages"


def user(text: str) -> list[Any]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def ask(text: str, **fields: Any) -> dict[str, Any]:
    """A request for the client."""
    return {"model": "crafted", "max_tokens": 500, "messages": user(text), "extra_body": COLD, **fields}


def body(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """The body of such a request."""
    return {"model": "crafted", "max_tokens": 500, "messages": user(text), **fields}


def text_of(content: list[ContentBlock]) -> str:
    """The text of an answer."""
    return "".join(block.text for block in content if block.type == "text")


def comparable(message: Message) -> dict[str, Any]:
    """A message without what differs from one answer to the next."""
    value: dict[str, Any] = Message.model_validate(message.to_dict()).model_dump()
    del value["id"]
    usage = value["usage"]
    usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    for block in value["content"]:
        if block["type"] == "tool_use":
            assert block.pop("id").startswith("toolu_")
    return value


def test_a_simple_answer(any_claude: anthropic.Anthropic) -> None:
    """The answer, the reason for its end and the token counts arrive, under either base URL."""
    answer = any_claude.messages.create(**ask("hello"))
    assert (text_of(answer.content), answer.stop_reason) == (SCRIPTS["hello"].text(), "end_turn")
    assert (answer.role, answer.model, answer.type) == ("assistant", "crafted", "message")
    assert answer.id.startswith("msg_")
    assert answer.usage.output_tokens == len(SCRIPTS["hello"].pieces) + 1
    with any_claude.messages.stream(**ask("hello")) as stream:
        assert "".join(stream.text_stream) == SCRIPTS["hello"].text()


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_streamed_or_not_the_answer_is_the_same(claude: anthropic.Anthropic, script: str) -> None:
    """Every script gives the same message both ways."""
    request = ask(script, tools=[TOOL])
    whole = claude.messages.create(**request)
    with claude.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    assert comparable(streamed) == comparable(whole)


def test_an_asynchronous_client(server: lib_mlx.Server) -> None:
    """Requests side by side each get their own answer."""
    names = ["hello", "think", "unicode", "long", "stopword"] * 3

    async def one(client: anthropic.AsyncAnthropic, name: str) -> str:
        async with client.messages.stream(**ask(name, stop_sequences=["STOP"])) as stream:
            return text_of((await stream.get_final_message()).content)

    async def everything() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=server.base_url, api_key="x", max_retries=0) as client:
            return await asyncio.gather(*(one(client, name) for name in names))

    for name, text in zip(names, asyncio.run(everything()), strict=True):
        expected = SCRIPTS[name].text(thinking=False)
        assert text == (expected.lstrip() if name == "think" else expected.partition("STOP")[0])


def test_a_round_of_tools(claude: anthropic.Anthropic) -> None:
    """A call, its result and the answer to it, with the client's objects sent back in each way it offers."""
    first = claude.messages.create(**ask("think_tool", tools=[TOOL]))
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    with claude.messages.stream(**ask("think_tool", tools=[TOOL])) as stream:
        streamed = stream.get_final_message()
    turns: list[Any] = [
        first.to_param(),
        {"role": "assistant", "content": [block.model_dump() for block in first.content]},
        {"role": "assistant", "content": [block.to_dict() for block in first.content]},
        {"role": "assistant", "content": streamed.content},
    ]
    for turn in turns:
        used = streamed.content[-1] if turn is turns[-1] else call
        result = {"type": "tool_result", "tool_use_id": getattr(used, "id", ""), "content": "sunny"}
        messages = [*user("think_tool"), turn, {"role": "user", "content": [result]}]
        second = claude.messages.create(**{**ask(""), "messages": messages, "tools": [TOOL]})
        assert (text_of(second.content), second.stop_reason) == (SCRIPTS["after"].text(), "end_turn")


def test_several_calls(claude: anthropic.Anthropic) -> None:
    """Calls side by side are blocks of their own; one is enough if that is asked for."""
    two = claude.messages.create(**ask("tools", tools=[TOOL, {**TOOL, "name": "get_time"}]))
    assert [getattr(block, "name", None) for block in two.content] == ["get_weather", "get_time"]
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    one = claude.messages.create(**ask("tools", tools=[TOOL], tool_choice=choice))
    assert [getattr(block, "name", None) for block in one.content] == ["get_weather"]


def test_no_tools(claude: anthropic.Anthropic) -> None:
    """With `none` the tools are not offered, and what looks like a call is text."""
    answer = claude.messages.create(**ask("tool", tools=[TOOL], tool_choice={"type": "none"}))
    assert (answer.stop_reason, [block.type for block in answer.content]) == ("end_turn", ["text"])


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "find"}])
def test_forced_calls(claude: anthropic.Anthropic, choice: dict[str, Any]) -> None:
    """A model that would chat calls the tool, with arguments that fit."""
    answer = claude.messages.create(
        **ask(
            "hello",
            tools=[{"name": "find", "input_schema": CITY, "strict": True}],
            tool_choice={**choice, "disable_parallel_tool_use": True},
            thinking={"type": "disabled"},
            max_tokens=100,
        )
    )
    (call,) = answer.content
    assert call.type == "tool_use"
    assert (call.name, list(call.input)) == ("find", ["city"])


def test_thinking(claude: anthropic.Anthropic) -> None:
    """It is shown as a block of its own, hidden or left out, as asked."""
    shown = claude.messages.create(**ask("think", thinking={"type": "adaptive"}))
    assert [block.type for block in shown.content] == ["thinking", "text"]
    block = shown.content[0]
    assert block.type == "thinking"
    assert block.thinking == SCRIPTS["think"].reasoning.strip()
    assert block.signature
    assert shown.usage.output_tokens_details is not None
    assert shown.usage.output_tokens_details.thinking_tokens > 0
    off = claude.messages.create(**ask("think", thinking={"type": "disabled"}))
    assert [block.type for block in off.content] == ["text"]


def test_hidden_thinking_comes_back(claude: anthropic.Anthropic) -> None:
    """The prompt of the next turn is the same whether the reasoning was shown or not."""
    counts = []
    for display in ("summarized", "omitted"):
        request = ask("think_tool", tools=[TOOL], thinking={"type": "adaptive", "display": display})
        with claude.messages.stream(**request) as stream:
            first = stream.get_final_message()
        assert first.content[0].type == "thinking"
        assert bool(first.content[0].thinking) == (display == "summarized")
        call = first.content[-1]
        assert call.type == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        messages = [*user("think_tool"), {"role": "assistant", "content": first.content}]
        messages.append({"role": "user", "content": [result]})
        counts.append(claude.messages.count_tokens(model="crafted", messages=messages, tools=[TOOL]).input_tokens)
    assert counts[0] == counts[1]


def test_a_budget_of_thinking(ponderer: anthropic.Anthropic) -> None:
    """A model that would reason without end stops doing so after so many tokens, and answers."""
    request = ask("ponder", max_tokens=1200, thinking={"type": "enabled", "budget_tokens": 1024})
    with ponderer.messages.stream(**request) as stream:
        answer = stream.get_final_message()
    assert [block.type for block in answer.content][:1] == ["thinking"]
    assert answer.usage.output_tokens_details is not None
    assert answer.usage.output_tokens_details.thinking_tokens >= 1026
    assert answer.usage.output_tokens > answer.usage.output_tokens_details.thinking_tokens
    endless = ponderer.messages.create(**ask("ponder", max_tokens=1200, thinking={"type": "adaptive"}))
    assert (endless.stop_reason, len(endless.content)) == ("max_tokens", 1)


def test_the_form_of_the_answer(claude: anthropic.Anthropic) -> None:
    """A schema is guaranteed, streamed or not, given as a dictionary or by the client's parsing helpers."""

    class City(BaseModel):
        city: Literal["Paris", "Rome"]

    form: Any = {"type": "json_schema", "schema": CITY}
    off: Any = {"thinking": {"type": "disabled"}}
    whole = claude.messages.create(**ask("hello", output_config={"format": form}, max_tokens=100, **off))
    assert list(json.loads(text_of(whole.content))) == ["city"]
    request: dict[str, Any] = ask("hello", max_tokens=100, **off)
    assert isinstance(claude.messages.parse(**request, output_format=City).parsed_output, City)
    with claude.messages.stream(**request, output_format=City) as stream:
        assert isinstance(stream.get_final_message().parsed_output, City)


def test_stop_sequences(claude: anthropic.Anthropic) -> None:
    """The one that matched is named and not shown, streamed or not."""
    request = ask("stopword", stop_sequences=["never", "STOP"])
    whole = claude.messages.create(**request)
    assert (text_of(whole.content), whole.stop_reason, whole.stop_sequence) == ("one two ", "stop_sequence", "STOP")
    with claude.messages.stream(**request) as stream:
        assert comparable(stream.get_final_message()) == comparable(whole)


def test_limits(claude: anthropic.Anthropic, http: httpx2.Client) -> None:
    """A cut answer says by what: the client's limit or the context's end."""
    cut = claude.messages.create(**ask("loop", max_tokens=5))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 5)
    long = "loop " + "x" * 3950
    full = claude.messages.create(**ask(long, max_tokens=4000))
    assert full.stop_reason == "model_context_window_exceeded"
    too_long = http.post(MESSAGES, json=body("x" * 5000))
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_prompt_that_is_only_cached(claude: anthropic.Anthropic) -> None:
    """With a limit of 0 nothing is said, and the next request finds the prompt computed."""
    text = "hello, said first with a limit of nothing"
    warm = claude.messages.create(**ask(text, max_tokens=0))
    assert (warm.content, warm.stop_reason, warm.usage.output_tokens) == ([], "max_tokens", 0)
    prompt = warm.usage.input_tokens + (warm.usage.cache_read_input_tokens or 0)
    usage = claude.messages.create(**ask(text)).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (1, prompt - 1)
    assert warm.usage.input_tokens > 1


def test_an_answer_that_has_begun(claude: anthropic.Anthropic, crafted_model: lib_mlx.Model) -> None:
    """The answer goes on from the text given: here from a token that starts a script with white space."""
    messages = [*user("hello"), {"role": "assistant", "content": "Counting:<|go:long|>"}]
    answer = claude.messages.create(**{**ask(""), "messages": messages})
    assert text_of(answer.content) == SCRIPTS["long"].text()
    with pytest.raises(anthropic.BadRequestError, match="begun") as caught:
        claude.messages.create(**{**ask(""), "messages": messages, "thinking": {"type": "adaptive"}})
    assert caught.value.error_code == "unsupported_feature"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be brief."},
        {"tools": [TOOL]},
        {"thinking": {"type": "disabled"}},
        {"messages": [*user("hello"), {"role": "assistant", "content": "Dear"}]},
    ],
)
def test_counting_tokens(any_claude: anthropic.Anthropic, fields: dict[str, Any]) -> None:
    """The count is that of the prompt."""
    request = {**ask("hello"), **fields}
    usage = any_claude.messages.create(**request).usage
    del request["max_tokens"]
    count = any_claude.messages.count_tokens(**{**request, "extra_body": {}})
    MessageTokensCount.model_validate(count.to_dict())
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_counting_more_tokens_than_the_context_holds(claude: anthropic.Anthropic, http: httpx2.Client) -> None:
    """That is what counting is for."""
    few, many = (
        claude.messages.count_tokens(model="crafted", messages=user("x" * length)).input_tokens for length in (1, 9001)
    )
    assert many - few == 9000
    for wrong in ({"max_tokens": 5}, {"stream": True}, {"temperature": 1}):
        answer = http.post(f"{MESSAGES}/count_tokens", json={"model": "crafted", "messages": user("x"), **wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, min(wrong))
    assert http.get("/health").json()["in_flight"] == 0


def test_the_beta_client(claude: anthropic.Anthropic) -> None:
    """It asks at the same routes and gets the same answers."""
    answer = claude.beta.messages.create(**ask("hello"))
    assert answer.content[0].type == "text"
    assert claude.beta.messages.count_tokens(model="crafted", messages=user("hello")).input_tokens > 0
    assert [model.id for model in claude.beta.models.list()] == ["crafted"]


def test_the_raw_stream(http: httpx2.Client) -> None:
    """Each event has a name, which is its type; the message's end is the stream's, without a [DONE]."""
    answer = http.post("/anthropic/v1/messages", json=body("think_tool", stream=True, tools=[TOOL]))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["request-id"]
    events = [part.split("\n", 1) for part in answer.text.strip().split("\n\n")]
    names = []
    for name, data in events:
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
        names.append(name.removeprefix("event: "))
    assert names[:2] == ["message_start", "ping"]
    assert names[-2:] == ["message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "code"),
    [
        ("GET", "/anthropic/v1/nothing", 404, "not_found_error", "not_found"),
        ("GET", "/anthropic", 404, "not_found_error", "not_found"),
        ("GET", MESSAGES, 405, "invalid_request_error", "method_not_allowed"),
        ("POST", f"{MESSAGES}/batches", 404, "not_found_error", "not_found"),
        ("POST", "/anthropic/v1/models", 405, "invalid_request_error", "method_not_allowed"),
        ("GET", "/anthropic/v1/models/other", 404, "not_found_error", "model_not_found"),
        ("POST", MESSAGES, 415, "invalid_request_error", "unsupported_media_type"),
    ],
)
def test_errors(http: httpx2.Client, method: str, path: str, status: int, kind: str, code: str) -> None:
    """They have Anthropic's shape and type, our code, and the request's id."""
    answer = http.request(method, path, headers={"x-request-id": "mine"})
    error = answer.json()
    assert (answer.status_code, error["type"], error["request_id"]) == (status, "error", "mine")
    assert (error["error"]["type"], error["error"]["details"]) == (kind, {"error_code": code})
    assert error["error"]["message"]


def test_the_header_decides_the_shape_of_errors(http: httpx2.Client) -> None:
    """Elsewhere Anthropic's clients are known by their header; other clients get OpenAI's shape."""
    for header, shaped in (({"anthropic-version": "2023-06-01"}, True), ({}, False)):
        error = http.get("/v1/models/other", headers=header).json()
        assert (error.get("type") == "error") == shaped
    assert http.get("/v1/messagesque").json().get("type") is None


def test_errors_as_the_client_sees_them(claude: anthropic.Anthropic, server: lib_mlx.Server) -> None:
    """Each raises the client's own class, with the type and the code."""
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(**{**ask("hello"), "model": "other"})
    assert (missing.value.type, missing.value.error_code) == ("not_found_error", "model_not_found")
    with pytest.raises(anthropic.BadRequestError, match="colour") as unknown:
        claude.messages.create(**ask("hello", extra_query={}) | {"extra_body": {"colour": "red"}})
    assert (unknown.value.type, unknown.value.error_code) == ("invalid_request_error", "invalid_argument")
    assert unknown.value.request_id


def test_the_queue_limit(crafted: Path) -> None:
    """One request more than allowed is a rate limit, for answers and for counting."""
    with lib_mlx.load_model(crafted, model_id="crafted") as model, model.start_server(queue_limit=1) as server:
        with new_client(server.base_url) as claude, claude.messages.stream(**ask("loop", max_tokens=3000)) as stream:
            next(iter(stream))
            for attempt in (claude.messages.create, claude.messages.count_tokens):
                request = ask("hello")
                if attempt == claude.messages.count_tokens:
                    del request["max_tokens"], request["extra_body"]
                with pytest.raises(anthropic.RateLimitError) as caught:
                    attempt(**request)
                assert (caught.value.type, caught.value.error_code) == ("rate_limit_error", "queue_full")
        eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 0)


def test_an_error_in_mid_stream(crafted: Path) -> None:
    """A stop of the server is an error event, which the client raises, and nothing after it."""
    with lib_mlx.load_model(crafted, model_id="crafted") as model:
        server = model.start_server()
        stopper = threading.Thread(target=server.stop)
        with (
            new_client(server.base_url) as claude,
            claude.messages.stream(**ask("loop", max_tokens=3900)) as stream,
        ):
            next(iter(stream.text_stream))
            stopper.start()
            with pytest.raises(anthropic.APIStatusError) as caught:
                stream.until_done()
        stopper.join()
    assert (caught.value.type, caught.value.error_code) == ("overloaded_error", "shutting_down")


def test_pings_keep_an_idle_stream_alive(
    server: lib_mlx.Server, crafted_model: lib_mlx.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing comes from the model, pings do, in the form of events."""
    monkeypatch.setattr("lib_mlx.server.sse.KEEP_ALIVE_S", 0.05)
    engine = get_runtime().engine(crafted_model._handle)
    engine.suspend()
    try:
        with (
            httpx2.Client(base_url=server.base_url, timeout=30) as http,
            http.stream("POST", MESSAGES, json=body("loop", stream=True)) as answer,
        ):
            pings = (line for line in answer.iter_lines() if line == "event: ping")
            for _ in range(3):
                next(pings)
    finally:
        engine.resume()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(
    server: lib_mlx.Server, crafted_model: lib_mlx.Model, stream: bool
) -> None:
    """When the connection closes, streamed or not, generation stops."""
    content = json.dumps(body("loop", max_tokens=4000, stream=stream)).encode()
    head = f"POST {MESSAGES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}"
    with socket.create_connection((server.host, server.port)) as raw:
        raw.sendall(f"{head}\r\n\r\n".encode() + content)
        eventually(lambda: scheduler_depth(crafted_model) == 1)
        if stream:
            assert raw.recv(100)
    eventually(lambda: scheduler_depth(crafted_model) == 0)
    eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TYPES = st.sampled_from([
    "text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking", "document", "custom", "ephemeral",
    "enabled", "disabled", "adaptive", "auto", "any", "tool", "none", "json_schema", "object",
])  # fmt: skip
INNER = st.sampled_from([
    "text", "id", "name", "input", "tool_use_id", "content", "thinking", "signature", "data", "cache_control",
    "is_error", "budget_tokens", "input_schema", "format", "schema", "user_id", "strict",
])  # fmt: skip
THING = st.builds(lambda kind, rest: {"type": kind, **rest}, TYPES, st.dictionaries(INNER, JSON, max_size=4))
TURN = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system"]),
    st.text(max_size=5) | st.lists(THING, max_size=3),
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(TURN, max_size=4),
        "system": JSON | st.lists(THING, max_size=2),
        "tools": st.lists(THING, max_size=2),
        "tool_choice": THING | JSON,
        "thinking": THING | JSON,
        "output_config": st.dictionaries(INNER, THING | JSON, max_size=2) | JSON,
        "max_tokens": st.integers(max_value=8) | JSON,
        "stop_sequences": st.lists(st.text(max_size=3), max_size=3) | JSON,
        "metadata": JSON,
        "stream": st.booleans() | JSON,
        "temperature": JSON,
        "top_k": JSON,
        "model": JSON,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([MESSAGES, f"{MESSAGES}/count_tokens"]), fields=FIELDS)
def test_any_json_is_a_client_error(http: httpx2.Client, path: str, fields: dict[str, Any]) -> None:
    """Random bodies never make a 500; every error has Anthropic's shape."""
    sent = {"model": "crafted", "messages": user("hello"), **fields}
    if path == MESSAGES:
        sent.setdefault("max_tokens", 4)
    answer = http.post(path, json=sent)
    assert answer.status_code in {200, 400, 404}
    if answer.status_code != 200:
        error = answer.json()
        assert error["error"]["message"]
        assert error["error"]["type"] in {"invalid_request_error", "not_found_error"}
        assert error["error"]["code"] in {"invalid_argument", "unsupported_feature", "model_not_found"}
