"""The fold of a message, without a model or a socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from lib_mlx.errors import Cancelled, QueueFull
from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, Timings, ToolCallDelta, Usage
from lib_mlx.server.anthropic.common import hidden_reasoning
from lib_mlx.server.anthropic.messages import MessagesFold, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lib_mlx.generation import FinishReason, GenerationEvent

STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
USAGE = Usage(prompt=10, cached=4, completion=7, reasoning=3)


def finished(reason: FinishReason = "stop", stop: str | None = None) -> Finished:
    """An end that went well."""
    return Finished(reason, USAGE, Timings(), stop)


EVENTS: list[GenerationEvent] = [
    ReasoningDelta("h"),
    ReasoningDelta("m"),
    TextDelta("a"),
    TextDelta("b"),
    ToolCallDelta(0, "call_1", "f", '{"x":1}'),
    ToolCallDelta(1, "call_2", "g", "{}"),
    TextDelta("c"),
    finished("tool_calls"),
]


def fold(events: Sequence[GenerationEvent], **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the stream's events and the message, as a client reads them."""
    made = MessagesFold("m", **{"prompt_tokens": 10, "max_tokens": 100, **options})
    stream = made.opening() + [item for event in events for item in made.add(event)]
    return json.loads(orjson.dumps(stream)), json.loads(orjson.dumps(made.message))


def added_up(stream: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a client makes of the stream."""
    message: dict[str, Any] = {}
    texts: dict[int, dict[str, str]] = {}
    for event in stream:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                texts[event["index"]] = {}
            case "content_block_delta":
                _, field = {name: value for name, value in event["delta"].items() if name != "type"}.popitem()
                name = event["delta"]["type"].removesuffix("_delta")
                texts[event["index"]][name] = texts[event["index"]].get(name, "") + field
            case "content_block_stop":
                for name, text in texts.pop(event["index"]).items():
                    block = message["content"][event["index"]]
                    block |= {"input": json.loads(text)} if name == "input_json" else {name: text}
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    assert not texts
    return message


def test_the_message_and_the_stream_are_the_same_fold() -> None:
    """The stream's events add up to the message, and both are of the client's types."""
    stream, message = fold(EVENTS)
    for event in stream:
        if event["type"] != "ping":
            STREAM_EVENT.validate_python(event)
    Message.model_validate(message)
    assert added_up(stream) == message
    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "lib_mlx"},
        {"type": "text", "text": "ab"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
        {"type": "text", "text": "c"},
    ]
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["id"].startswith("msg_")


def test_the_order_of_events() -> None:
    """One ping after the start; each block is opened, streamed, signed if it is reasoning, and closed; then the end."""
    stream, _ = fold([ReasoningDelta("h"), TextDelta("a"), finished()])
    kinds = [event.get("delta", {}).get("type", event["type"]) for event in stream]
    assert kinds == [
        "message_start", "ping",
        "content_block_start", "thinking_delta", "signature_delta", "content_block_stop",
        "content_block_start", "text_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert stream[0]["message"]["content"] == []
    assert stream[0]["message"]["stop_reason"] is None


def test_each_event_is_named() -> None:
    """Server-sent events carry their type as their name."""
    assert encode(MessagesFold("m", prompt_tokens=1, max_tokens=1).opening()).endswith(
        b'event: ping\ndata: {"type":"ping"}\n\n'
    )


def test_usage() -> None:
    """Cached tokens are counted apart from the input; the counts at the end of the stream are those of the message."""
    stream, message = fold(EVENTS)
    usage = message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (6, 4, 0)
    assert (usage["output_tokens"], usage["output_tokens_details"]) == (7, {"thinking_tokens": 3})
    assert stream[0]["message"]["usage"]["input_tokens"] == 10
    assert stream[-2]["usage"].items() <= usage.items()


@pytest.mark.parametrize(
    ("reason", "stop", "max_tokens", "expected"),
    [
        ("stop", None, 100, "end_turn"),
        ("stop", "END", 100, "stop_sequence"),
        ("stop", None, 7, "end_turn"),
        ("tool_calls", None, 100, "tool_use"),
        ("length", None, 7, "max_tokens"),
        ("length", None, 100, "model_context_window_exceeded"),
    ],
)
def test_stop_reasons(reason: FinishReason, stop: str | None, max_tokens: int, expected: str) -> None:
    """Each end has Anthropic's name, and a matched stop sequence is reported."""
    stream, message = fold([TextDelta("a"), finished(reason, stop)], max_tokens=max_tokens)
    assert (message["stop_reason"], message["stop_sequence"]) == (expected, stop)
    assert added_up(stream) == message


def test_pieces_of_a_call_are_one_block() -> None:
    """Further deltas of the same call go on with its input."""
    stream, message = fold(
        [ToolCallDelta(0, "call_1", "f", '{"x"'), ToolCallDelta(0, "call_1", "f", ":1}"), finished()]
    )
    assert message["content"] == [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}]
    assert added_up(stream) == message


@pytest.mark.parametrize("arguments", ['{"x":123456789012345678901234567890}', '{"x":"\\ud800"}', '{"x":1e400}'])
def test_inputs_that_json_can_say_and_orjson_cannot(arguments: str) -> None:
    """They arrive as the model wrote them."""
    made = MessagesFold("m", prompt_tokens=1, max_tokens=100)
    for event in (ToolCallDelta(0, "call_1", "f", arguments), finished("tool_calls")):
        made.add(event)
    assert f'"input":{arguments}'.encode() in orjson.dumps(made.message)


def test_reasoning_that_is_not_shown() -> None:
    """Its block has no text and no deltas of it, but a signature that carries it."""
    events: list[GenerationEvent] = [ReasoningDelta("h"), ReasoningDelta("é"), TextDelta("a"), finished()]
    stream, message = fold(events, omits_thinking=True)
    block = message["content"][0]
    assert (block["thinking"], hidden_reasoning(block["signature"])) == ("", "hé")
    assert added_up(stream) == message
    assert not any(event.get("delta", {}).get("type") == "thinking_delta" for event in stream)


def test_a_signature_that_was_changed() -> None:
    """It is noticed; another server's means nothing."""
    assert hidden_reasoning("EqQBCgIYAhIM") == ""
    for wrong in ("lib_mlx:!", "lib_mlx:/w=="):
        with pytest.raises(ValueError, match="changed"):
            hidden_reasoning(wrong)


def test_nothing_is_said_if_nothing_was_asked_for() -> None:
    """With a limit of 0 the one token that was made is neither shown nor counted."""
    _, message = fold([TextDelta("a"), finished("length")], max_tokens=0)
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], "max_tokens", 0)


def test_an_error_after_the_stream_began() -> None:
    """It is an error event with the request's id, and the last one."""
    made = MessagesFold("m", prompt_tokens=1, max_tokens=100, request_id="req_1")
    made.add(TextDelta("a"))
    (event,) = made.add(Failed(QueueFull("Full.")))
    assert event == {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "Full.",
            "code": "queue_full",
            "param": None,
            "details": {"error_code": "queue_full"},
        },
        "request_id": "req_1",
    }
    assert encode(made.add(Failed(Cancelled("Gone.")))).startswith(b"event: error\n")
