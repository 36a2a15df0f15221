"""Ollama's generate and chat: the fold, and the server through Ollama's own client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2
import ollama
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_mlx.errors import Cancelled
from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, Timings, ToolCallDelta, Usage
from lib_mlx.server.ollama.answers import AnswerFold, render
from tests.checkpoints import SCRIPTS
from tests.server.test_server import JSON, eventually, scheduler_depth

if TYPE_CHECKING:
    import lib_mlx
    from lib_mlx.generation import GenerationEvent

HELLO = SCRIPTS["hello"].text()
GREEDY = {"temperature": 0}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
EVENTS: list[GenerationEvent] = [
    ReasoningDelta("hm"),
    TextDelta("a"),
    TextDelta("b"),
    ToolCallDelta(0, "call_1", "f", '{"x": 1}'),
    Finished("tool_calls", Usage(3, 1, 5, 1), Timings(0.1, 0.2, 0.3, 0.4)),
]


@pytest.mark.parametrize("chat", [True, False])
def test_the_body_and_the_lines_are_the_same_fold(chat: bool) -> None:
    """The same events give the same text, thinking, calls and counts streamed or not, in Ollama's types."""
    fold = AnswerFold("m", chat=chat, load_s=0.5)
    lines = [fold.add(event) for event in EVENTS]
    body = fold.body()
    kind = ollama.ChatResponse if chat else ollama.GenerateResponse
    for value in (*lines, body):
        kind.model_validate(value)

    def said(value: dict[str, Any]) -> dict[str, Any]:
        return (
            {**value["message"], "text": value["message"]["content"]} if chat else {**value, "text": value["response"]}
        )

    assert "".join(said(one)["text"] for one in lines) == said(body)["text"] == "ab"
    assert said(body)["thinking"] == "hm"
    assert said(body)["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}, "id": "call_1"}]
    assert [one["done"] for one in lines] == [False] * 4 + [True]
    assert {key: value for key, value in body.items() if "_" in key and key not in {"created_at", "tool_calls"}} == {
        "done_reason": "stop",
        "total_duration": 1_200_000_000,
        "load_duration": 500_000_000,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 200_000_000,
        "eval_count": 5,
        "eval_duration": 300_000_000,
    }


@pytest.mark.parametrize(
    "arguments", ['{"n": 123456789012345678901}', '{"s": "\\ud800"}', '{"a": ' * 300 + "1" + "}" * 300]
)
def test_arguments_that_are_hard_to_say(arguments: str) -> None:
    """A call keeps its arguments, whatever JSON they are."""
    out = render(AnswerFold("m", chat=True), [(0, ToolCallDelta(0, "call_1", "f", arguments))])
    assert json.loads(out)["message"]["tool_calls"][0]["function"]["arguments"] == json.loads(arguments)


def test_an_error_in_the_middle() -> None:
    """It is a line of its own, the last one."""
    out = render(AnswerFold("m", chat=True), [(0, TextDelta("a")), (0, Failed(Cancelled("gone")))]).splitlines()
    assert json.loads(out[-1]) == {"error": "gone", "code": "cancelled"}
    assert len(out) == 2


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "loop"])
def test_streamed_or_not_the_answer_is_the_same(client: ollama.Client, script: str) -> None:
    """Every script gives the same content, thinking, calls and counts both ways."""
    request: dict[str, Any] = {
        "model": "crafted",
        "messages": [{"role": "user", "content": script}],
        "options": GREEDY,
        "tools": TOOLS,
    }
    whole = client.chat(**request)
    lines = list(client.chat(**request, stream=True))
    assert "".join(line.message.content or "" for line in lines) == whole.message.content
    assert "".join(line.message.thinking or "" for line in lines) == (whole.message.thinking or "")
    calls = [call.function for line in lines for call in line.message.tool_calls or ()]
    assert calls == [call.function for call in whole.message.tool_calls or ()]
    assert (lines[-1].done_reason, lines[-1].eval_count) == (whole.done_reason, whole.eval_count)
    assert whole.total_duration
    assert whole.prompt_eval_count


def test_a_stream_is_lines_of_json(http: httpx2.Client) -> None:
    """Without `stream` an answer is streamed; each line is an object, and there is no other line."""
    answer = http.post("/api/chat", json={"model": "crafted", "messages": [{"role": "user", "content": "hello"}]})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.removesuffix("\n").split("\n")]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_generate(client: ollama.Client) -> None:
    """A prompt is a user's message, with a system message before it; raw, it is continued as it is."""
    answer = client.generate("crafted", "hello", system="be kind", options=GREEDY)
    assert (answer.response, answer.done_reason) == (HELLO, "stop")
    raw = client.generate("crafted", "<|go:hello|>", raw=True, options=GREEDY)
    assert raw.response == HELLO
    assert raw.prompt_eval_count == 1
    streamed = client.generate("crafted", "hello", options=GREEDY, stream=True)
    assert "".join(line.response or "" for line in streamed) == HELLO


def test_a_tool_conversation(client: ollama.Client) -> None:
    """A call, its result by name and the answer to it, with Ollama's objects sent back."""
    messages: list[Any] = [{"role": "user", "content": "think_tool"}]
    first = client.chat("crafted", messages, tools=TOOLS, options=GREEDY).message
    assert first.tool_calls
    messages += [first, {"role": "tool", "content": "sunny", "tool_name": first.tool_calls[0].function.name}]
    assert client.chat("crafted", messages, tools=TOOLS, options=GREEDY).message.content == SCRIPTS["after"].text()


def test_thinking(client: ollama.Client) -> None:
    """It is on unless it is turned off, and comes apart from the content."""
    messages = [{"role": "user", "content": "think"}]
    assert client.chat("crafted", messages, options=GREEDY, think=True).message.thinking
    assert client.chat("crafted", messages, options=GREEDY, think="low").message.thinking


@pytest.mark.parametrize("streamed", [True, False])
def test_format(client: ollama.Client, streamed: bool) -> None:
    """JSON, and JSON of a schema, are guaranteed, whatever the model wants to say."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    messages = [{"role": "user", "content": "hello"}]
    options = {**GREEDY, "num_predict": 60}
    for form in ("json", schema):
        answer = client.chat("crafted", messages, format=form, options=options, think=False, stream=streamed)
        text = "".join(one.message.content or "" for one in answer) if streamed else answer.message.content
        assert text.startswith("{")


def test_a_temperature_may_be_above_two(client: ollama.Client) -> None:
    """Ollama has no upper bound; the engine's is far away, and told of."""
    assert client.generate("crafted", "loop", options={"temperature": 5.0, "num_predict": 5}).eval_count
    with pytest.raises(ollama.ResponseError, match="from 0 to 1000"):
        client.generate("crafted", "loop", options={"temperature": 1e300, "num_predict": 5})


def test_options(client: ollama.Client) -> None:
    """Length, stop and seed do what they say."""
    short = client.generate("crafted", "loop", options={**GREEDY, "num_predict": 5})
    assert (short.eval_count, short.done_reason) == (5, "length")
    stop = HELLO[5:8]
    assert (
        client.generate("crafted", "hello", options={**GREEDY, "stop": [stop]}).response == HELLO[: HELLO.index(stop)]
    )
    hot = {"temperature": 2.0, "seed": 5, "num_predict": 20}
    assert (
        client.generate("crafted", "hello", options=hot).response
        == client.generate("crafted", "hello", options=hot).response
    )


def test_logprobs(client: ollama.Client) -> None:
    """Each token of the answer with its rivals."""
    answer = client.generate("crafted", "hello", options=GREEDY, logprobs=True, top_logprobs=2)
    assert answer.logprobs
    assert "".join(one.token for one in answer.logprobs) == answer.response
    assert all(len(one.top_logprobs or ()) == 2 for one in answer.logprobs)


@pytest.mark.parametrize("stream", [True, False])
def test_without_a_prompt_the_model_is_only_loaded(http: httpx2.Client, stream: bool) -> None:
    """The answer is empty and says so; the host's own model is not unloaded by it."""
    for body in ({"messages": []}, {}):
        path = "/api/chat" if body else "/api/generate"
        for keep_alive, reason in ((None, "load"), (0, "unload")):
            answer = http.post(path, json={"model": "crafted", "stream": stream, "keep_alive": keep_alive, **body})
            line = json.loads(answer.text)
            assert (line["done"], line["done_reason"]) == (True, reason)
    assert http.get("/v1/models/crafted").json()["status"] == "ready"


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}, "messages.0.images"),
        ("generate", {"images": ["AAAA"]}, "images"),
        ("generate", {"suffix": "x"}, "suffix"),
        ("generate", {"template": "x"}, "template"),
        ("generate", {"context": [1]}, "context"),
        ("generate", {"raw": True, "system": "x"}, "system"),
        ("generate", {"width": 100}, "width"),
        ("generate", {"options": {"mirostat": 1}}, "options.mirostat"),
        ("generate", {"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ("generate", {"options": {"repeat_penalty": 1.2, "repeat_last_n": 64}}, "options.repeat_last_n"),
        ("generate", {"options": {"num_ctx": 1 << 20}}, "1048576"),
        ("generate", {"options": {"unknown": 1}}, "options.unknown"),
        ("generate", {"unknown": 1}, "unknown"),
        ("generate", {"format": "xml"}, "format"),
        ("generate", {"keep_alive": "soon"}, "keep_alive"),
        ("generate", {"top_logprobs": 3}, "top_logprobs"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ("chat", {"messages": [{"role": "user"}]}, "messages.0"),
        ("chat", {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]}, "tool"),
    ],
)
def test_refusals(http: httpx2.Client, path: str, fields: dict[str, Any], named: str) -> None:
    """What cannot be honoured is a 400 in Ollama's shape that names it."""
    answer = http.post(
        f"/api/{path}",
        json={"model": "crafted", "prompt": "hello", **fields}
        if path == "generate"
        else {"model": "crafted", **fields},
    )
    assert answer.status_code == 400
    assert named in answer.json()["error"]
    assert http.get("/health").json()["in_flight"] == 0


def test_an_unknown_model(client: ollama.Client) -> None:
    """It is a 404; the default tag makes no difference to a known one."""
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate("other", "hello")
    assert caught.value.status_code == 404
    assert client.generate("crafted:latest", "hello", options=GREEDY).model == "crafted:latest"


def test_a_model_that_cannot_think(http: httpx2.Client, server: lib_mlx.Server) -> None:
    """Asking it to is refused, as Ollama does."""
    answer = http.post("/api/generate", json={"model": "crafted", "prompt": "hello", "think": "deeply"})
    assert answer.status_code == 400


def test_a_client_that_leaves(server: lib_mlx.Server, crafted_model: lib_mlx.Model, http: httpx2.Client) -> None:
    """Its slot is free at once."""
    with httpx2.Client(base_url=server.base_url, timeout=30) as leaving:
        body = {"model": "crafted", "prompt": "loop"}
        with leaving.stream("POST", "/api/generate", json=body) as answer:
            chunks = answer.iter_bytes()
            next(chunks)
            eventually(lambda: scheduler_depth(crafted_model) == 1)
    eventually(lambda: scheduler_depth(crafted_model) == 0)
    eventually(lambda: http.get("/health").json()["in_flight"] == 0)


FIELDS = st.sampled_from(["model", "prompt", "messages", "stream", "options", "format", "think", "tools", "keep_alive"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["generate", "chat", "embed", "show"]), body=st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_json_is_a_client_error(http: httpx2.Client, path: str, body: dict[str, Any]) -> None:
    """Random JSON never makes a 500; every error has a message."""
    answer = http.post(f"/api/{path}", json={"model": "crafted", "options": {"num_predict": 4}, **body})
    assert answer.status_code in {200, 400, 404}
    if answer.status_code != 200:
        assert answer.json()["error"]
