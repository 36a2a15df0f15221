"""Responses: the fold against the published schemas, and the server through OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_mlx.errors import ShuttingDown
from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, Timings, ToolCallDelta, Usage
from lib_mlx.server.openai.responses import ResponsesFold
from lib_mlx.server.openai.responses_request import ResponsesRequest
from tests.checkpoints import SCRIPTS
from tests.server.specs import check, event_schemas

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx2

    import lib_mlx
    from lib_mlx.generation import GenerationEvent

TOOLS: list[Any] = [
    {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
]
ALL_SCRIPTS = [name for name in SCRIPTS if name != "loop"]
USAGE = Usage(prompt=3, cached=1, completion=5, reasoning=2)
# The published schema of a reasoning item's text events names them `response.reasoning.*`; OpenAI's clients and
# document call them `response.reasoning_text.*`, which is what we send.
EVENT_SCHEMAS = event_schemas("openai") | {
    kind: name for kind, name in event_schemas("openresponses").items() if not kind.startswith("response.reasoning.")
}


def fold_of(events: Iterable[GenerationEvent], **fields: Any) -> tuple[ResponsesFold, list[dict[str, Any]]]:
    """Fold `events`; return the fold and its stream events."""
    fold = ResponsesFold(ResponsesRequest(input="x", **fields), "m", temperature=1.0, top_p=1.0)
    return fold, fold.opening() + [made for event in events for made in fold.add(event)]


def check_stream(events: list[dict[str, Any]]) -> None:
    """Demand what the state machine promises: numbering, nesting, and text that adds up."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1]["response"]
    check("openresponses", "ResponseResource", final)
    open_item: dict[str, Any] | None = None
    deltas = ""
    done: list[dict[str, Any]] = []
    for event in events:
        name = EVENT_SCHEMAS[event["type"]]
        spec = "openresponses" if name.endswith("StreamingEvent") else "openai"
        check(spec, name, event)
        kind = event["type"]
        if kind == "response.output_item.added":
            assert open_item is None, "an item opens while another is open"
            open_item, deltas = event["item"], ""
            assert event["output_index"] == len(done)
        elif kind == "response.output_item.done":
            assert open_item is not None
            assert event["item"]["id"] == open_item["id"]
            done.append(event["item"])
            open_item = None
        elif kind.endswith(".delta"):
            assert open_item is not None
            assert (event["item_id"], event["output_index"]) == (open_item["id"], len(done))
            deltas += event["delta"]
        elif kind.endswith((".text.done", "_text.done", "arguments.done")):
            assert event.get("text", event.get("arguments")) == deltas
    assert open_item is None, "an item is never closed"
    assert final["output"] == done


REASONED = [ReasoningDelta("h"), ReasoningDelta("m"), TextDelta("a"), TextDelta("b")]
CALL = ToolCallDelta(0, "call_1", "f", '{"x": 1}')


def test_the_order_of_events() -> None:
    """Reasoning, message and call are opened, streamed and closed one after the other."""
    fold, events = fold_of([*REASONED, CALL, Finished("tool_calls", USAGE, Timings())])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    check_stream(events)
    assert fold.response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert [item["status"] for item in fold.response["output"]] == ["completed"] * 3


@pytest.mark.parametrize("cut", range(5))
def test_a_cut_answer_is_incomplete(cut: int) -> None:
    """An answer cut at any place ends well-formed, incomplete, with the reason."""
    fold, events = fold_of([*REASONED[:cut], Finished("length", USAGE, Timings())])
    check_stream(events)
    assert events[-1]["type"] == "response.incomplete"
    assert fold.response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert fold.response["completed_at"] is None
    assert [item["status"] for item in fold.response["output"]][-1:] == (["incomplete"] if cut else [])


def test_a_failed_answer_says_so() -> None:
    """An error after the beginning closes the open item and is the terminal event."""
    fold, events = fold_of([TextDelta("a"), Failed(ShuttingDown("The server is stopping."), USAGE)])
    check_stream(events)
    assert events[-1]["type"] == "response.failed"
    assert "shutting_down" in fold.response["error"]["message"]


EVENT = st.one_of(
    st.builds(ReasoningDelta, st.text(min_size=1, max_size=3)),
    st.builds(TextDelta, st.text(min_size=1, max_size=3)),
    st.just(CALL),
)


@given(st.lists(EVENT, max_size=8))
def test_any_events_make_a_valid_stream(events: list[GenerationEvent]) -> None:
    """In whatever order the model mixes its output, the stream keeps its promises."""
    check_stream(fold_of([*events, Finished("stop", USAGE, Timings())])[1])


def test_the_request_is_echoed() -> None:
    """What was asked for stands in the response."""
    fold, _ = fold_of([], instructions="Be brief.", max_output_tokens=7, metadata={"k": "v"}, tools=TOOLS)
    response = fold.response
    assert (response["instructions"], response["max_output_tokens"], response["metadata"]) == (
        "Be brief.",
        7,
        {"k": "v"},
    )
    assert response["tools"][0]["name"] == "get_weather"


# Through the server


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """Drop what differs between two equal requests: ids, times, and what the second finds cached."""
    varying = {"id", "call_id", "created_at", "completed_at", "cached_tokens"}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in varying}
        return [clean(item) for item in value] if isinstance(value, list) else value

    cleaned: dict[str, Any] = clean(response)
    return cleaned


def stream_of(http: httpx2.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Stream a response over plain HTTP; check the framing and return the events."""
    answer = http.post("/v1/responses", json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *frames, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_the_terminal_event_is_the_body(http: httpx2.Client, script: str) -> None:
    """Every script streams validly, and its last event carries what a request without `stream` gets."""
    body = {"model": "crafted", "input": script, "temperature": 0, "tools": TOOLS}
    events = stream_of(http, body)
    check_stream(events)
    whole = http.post("/v1/responses", json=body).json()
    check("openresponses", "ResponseResource", whole)
    assert without_ids(events[-1]["response"]) == without_ids(whole)


def test_the_official_client(client: openai.OpenAI) -> None:
    """OpenAI's client parses the response, and its stream helper ends with the same text."""
    whole = client.responses.create(model="crafted", input="think", temperature=0)
    assert (whole.output_text, whole.status) == ("The answer is 42", "completed")
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    with client.responses.stream(model="crafted", input="think", temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_the_asynchronous_client(server: lib_mlx.Server) -> None:
    """The asynchronous client streams and creates."""

    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="unused", max_retries=0) as client:
            whole = await client.responses.create(model="crafted", input="unicode")
            stream = await client.responses.create(model="crafted", input="unicode", stream=True)
            text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            return whole.output_text, text

    assert asyncio.run(both()) == (SCRIPTS["unicode"].text(),) * 2


def test_a_tool_conversation(client: openai.OpenAI) -> None:
    """The model's own items sent back with the tool's output get the answer to it."""
    items: list[Any] = [{"role": "user", "content": "think_tool"}]
    first = client.responses.create(model="crafted", input=items, tools=TOOLS)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    call = first.output[-1]
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    sent: Any
    for sent in (
        [item.model_dump(exclude_unset=True) for item in first.output],
        [item.model_dump() for item in first.output],
        [item.to_dict() for item in first.output],
        first.output,
    ):
        answer = client.responses.create(model="crafted", input=[*items, *sent, result], tools=TOOLS)
        assert answer.output_text == SCRIPTS["after"].text()


def test_max_output_tokens(client: openai.OpenAI) -> None:
    """A cut response is incomplete and says why."""
    cut = client.responses.create(model="crafted", input="loop", max_output_tokens=4)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.usage is not None
    assert cut.usage.output_tokens == 4


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"store": True}, "unsupported_feature", "store"),
    ({"background": True}, "unsupported_feature", "background"),
    ({"previous_response_id": "resp_1"}, "unsupported_feature", "previous_response_id"),
    ({"truncation": "auto"}, "unsupported_feature", "truncation"),
    ({"include": ["message.output_text.logprobs"]}, "unsupported_feature", "include"),
    ({"text": {"format": {"type": "xml"}}}, "unsupported_feature", "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "invalid_argument", "text.format"),
    ({"tools": [{"type": "web_search"}]}, "unsupported_feature", "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "invalid_argument", "tools.0.name"),
    ({"tool_choice": "required"}, "invalid_argument", "tool_choice"),
    ({"tool_choice": 5, "tools": TOOLS}, "invalid_argument", "tool_choice"),
    ({"input": []}, "invalid_argument", "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_feature", "input.0.type"),
    ({"input": [{"content": "x"}]}, "invalid_argument", "input.0.role"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "invalid_argument", "input.0"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "unsupported_feature",
        "input.0.content.0",
    ),
    ({"max_output_tokens": 0}, "invalid_argument", "max_output_tokens"),
    ({"temperature": -1}, "invalid_argument", "temperature"),
    ({"colour": "red"}, "invalid_argument", "colour"),
]


@pytest.mark.parametrize(("fields", "code", "param"), REFUSED)
def test_refusals(http: httpx2.Client, fields: dict[str, Any], code: str, param: str) -> None:
    """What cannot be honoured is a 400 that names it, and the server still answers."""
    answer = http.post("/v1/responses", json={"model": "crafted", "input": "hello", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert http.get("/health").status_code == 200


def test_text_format_and_forced_calls(http: httpx2.Client) -> None:
    """A schema and a forced call are guaranteed through this endpoint too, and echoed."""
    yes: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    yes["additionalProperties"] = False
    form = {"type": "json_schema", "name": "n", "schema": yes, "strict": True}
    tool = {"type": "function", "name": "find", "parameters": yes, "strict": True}
    choice = {"type": "function", "name": "find"}
    request = {"input": "hello", "reasoning": {"effort": "none"}, "max_output_tokens": 90}
    formed, called = (
        http.post("/v1/responses", json={**request, **fields}).json()
        for fields in (
            {"text": {"format": form}},
            {"tools": [tool], "tool_choice": choice, "parallel_tool_calls": False},
        )
    )
    # Open Responses types the echoed `schema` as null alone; OpenAI's clients need it as it was sent.
    assert openai.types.responses.Response.model_validate(formed).status == "completed"
    check("openresponses", "ResponseResource", called)
    assert called["status"] == "completed"
    assert list(json.loads(formed["output"][0]["content"][0]["text"])) == ["n"]
    assert formed["text"]["format"] == {**form, "description": None}
    assert list(json.loads(called["output"][0]["arguments"])) == ["n"]
    assert (called["tool_choice"], called["tools"][0]["strict"]) == (choice, True)
