"""Responses: the fold against the published schemas, and the server through OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_mlx.errors import Cancelled, ShuttingDown
from lib_mlx.generation import (
    Failed,
    Finished,
    ReasoningDelta,
    SampledToken,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from lib_mlx.server.openai.response_object import new_response
from lib_mlx.server.openai.responses import ResponsesFold
from lib_mlx.server.openai.responses_request import ResponsesRequest
from tests.checkpoints import SCRIPTS
from tests.server.openai.streams import check_stream, stream_of, without_ids
from tests.server.specs import check

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


def fold_of(events: Iterable[GenerationEvent], **fields: Any) -> tuple[ResponsesFold, list[dict[str, Any]]]:
    """Fold `events`; return the fold and its stream events."""
    body = ResponsesRequest(input="x", **fields)
    fold = ResponsesFold(new_response(body, "m", temperature=1.0, top_p=1.0))
    return fold, fold.opening() + [made for event in events for made in fold.add(event)]


REASONED: list[GenerationEvent] = [ReasoningDelta("h"), ReasoningDelta("m"), TextDelta("a"), TextDelta("b")]
CALL = ToolCallDelta(0, "call_1", "f", '{"x": 1}')


def test_the_order_of_events() -> None:
    """Reasoning, message and call are opened, streamed and closed one after the other."""
    fold, events = fold_of([*REASONED, CALL, Finished("tool_calls", USAGE, Timings())])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
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


def test_what_is_echoed_in_another_shape() -> None:
    """Tool choices in Chat Completions' shape, forms and options of reasoning are echoed in this API's."""
    named = {"type": "function", "function": {"name": "get_weather"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    reasoning = {"effort": "low", "context": "auto"}
    form = {"type": "json_schema", "name": "n", "schema": {}}
    first, _ = fold_of([], tools=TOOLS, tool_choice=named, reasoning=reasoning, text={"format": form})
    second, _ = fold_of([], tools=TOOLS, tool_choice=allowed, text={"verbosity": "medium"}, user="u")
    assert first.response["tool_choice"] == {"type": "function", "name": "get_weather"}
    assert first.response["reasoning"] == {"effort": "low", "summary": None, "context": "current_turn"}
    assert first.response["text"] == {"format": {**form, "description": None, "strict": True}}
    assert (second.response["user"], "user" in first.response) == ("u", False)
    assert second.response["tool_choice"] == {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "get_weather"}],
    }
    assert second.response["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    assert openai.types.responses.Response.model_validate(second.response).user == "u"


def test_a_response_in_the_background_is_queued_first() -> None:
    """It leaves the queue with its first output, and is cancelled rather than failed."""
    failed = Failed(Cancelled("The response was cancelled."), USAGE)
    fold, events = fold_of([TextDelta("a"), failed], background=True)
    check_stream(events)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "queued", "in_progress"]
    assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]
    assert (kinds[-1], fold.response["status"], fold.response["error"]) == ("incomplete", "cancelled", None)
    assert fold.response["output"][0]["status"] == "incomplete"
    nothing, events = fold_of([failed], background=True)
    check_stream(events)
    assert (len(events), nothing.response["status"]) == (3, "cancelled")


def test_log_probabilities_stand_in_deltas_and_in_the_whole() -> None:
    """Each delta has those of its own tokens, the end of the part and the item those of all, and not the next's."""
    tokens = [SampledToken(TokenLogprob(n, b"\xc3\xa9"[:n], -float("inf") if n == 1 else -0.5)) for n in (1, 2)]
    answer: list[GenerationEvent] = [TextDelta("é", tuple(tokens)), TextDelta("b"), CALL, TextDelta("c", (tokens[1],))]
    fold, events = fold_of([*answer, Finished("stop", USAGE, Timings())])
    check_stream(events)
    entries = [
        {"token": "\ufffd", "logprob": -9999.0, "bytes": [0xC3], "top_logprobs": []},
        {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9], "top_logprobs": []},
    ]
    told = [event["logprobs"] for event in events if event["type"].startswith("response.output_text.")]
    assert told == [entries, [], entries, [entries[1]], [entries[1]]]
    parts = [item["content"][0]["logprobs"] for item in fold.response["output"] if item["type"] == "message"]
    assert parts == [entries, [entries[1]]]
    openai.types.responses.Response.model_validate(fold.response)


def test_sealed_reasoning_is_given_when_it_is_whole() -> None:
    """`encrypted_content` stands in the finished item, not in the one just begun."""
    body = ResponsesRequest(input="x", include=["reasoning.encrypted_content"])
    fold = ResponsesFold(new_response(body, "m", temperature=1.0, top_p=1.0), lambda text: f"sealed {text}")
    events = fold.opening()
    for event in (*REASONED, Finished("stop", USAGE, Timings())):
        events += fold.add(event)
    check_stream(events)
    assert fold.response["output"][0]["encrypted_content"] == "sealed hm"
    added = next(event["item"] for event in events if event["type"] == "response.output_item.added")
    assert "encrypted_content" not in added


# Through the server


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
    ({"background": True, "store": False}, "invalid_argument", "background"),
    ({"previous_response_id": "resp_1"}, "previous_response_not_found", "previous_response_id"),
    ({"truncation": "middle"}, "invalid_argument", "truncation"),
    ({"include": ["file_search_call.results"]}, "unsupported_feature", "include"),
    ({"include": ["message.input_image.image_url"]}, "unsupported_feature", "include"),
    ({"include": "message.output_text.logprobs"}, "invalid_argument", "include"),
    ({"top_logprobs": 21}, "invalid_argument", "top_logprobs"),
    ({"top_logprobs": -1}, "invalid_argument", "top_logprobs"),
    ({"stream_options": {"include_obfuscation": False}}, "invalid_argument", "stream_options"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "unsupported_feature",
        "stream_options.include_obfuscation",
    ),
    ({"max_tool_calls": 1}, "unsupported_feature", "max_tool_calls"),
    ({"conversation": "conv_1"}, "unsupported_feature", "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "unsupported_feature", "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "unsupported_feature", "context_management"),
    ({"moderation": {"model": "m"}}, "unsupported_feature", "moderation"),
    ({"prompt_cache_options": {"mode": "explicit"}}, "unsupported_feature", "prompt_cache_options"),
    ({"service_tier": "priority"}, "unsupported_feature", "service_tier"),
    ({"metadata": {str(n): "" for n in range(17)}}, "invalid_argument", "metadata"),
    ({"metadata": {"k" * 65: ""}}, "invalid_argument", f"metadata.{'k' * 65}"),
    ({"metadata": {"k": "v" * 513}}, "invalid_argument", "metadata.k"),
    ({"metadata": {"k": 1}}, "invalid_argument", "metadata.k"),
    ({"safety_identifier": "s" * 129}, "invalid_argument", "safety_identifier"),
    ({"reasoning": {"summary": "detailed"}}, "unsupported_feature", "reasoning.summary"),
    ({"reasoning": {"generate_summary": "auto"}}, "unsupported_feature", "reasoning.generate_summary"),
    ({"reasoning": {"context": "all_turns"}}, "unsupported_feature", "reasoning.context"),
    ({"reasoning": {"mode": "pro"}}, "unsupported_feature", "reasoning.mode"),
    ({"reasoning": {"effort": "huge"}}, "invalid_argument", "reasoning.effort"),
    ({"text": {"verbosity": "low"}}, "unsupported_feature", "text.verbosity"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "invalid_argument", "text.format.name"),
    ({"text": {"format": {"type": "text", "colour": 1}}}, "invalid_argument", "text.format.colour"),
    ({"text": {"format": {"type": "xml"}}}, "unsupported_feature", "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "invalid_argument", "text.format"),
    ({"tools": [{"type": "web_search"}]}, "unsupported_feature", "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "invalid_argument", "tools.0.name"),
    ({"tools": [{**TOOLS[0], "defer_loading": True}]}, "unsupported_feature", "tools.0.defer_loading"),
    ({"tools": [{**TOOLS[0], "allowed_callers": ["programmatic"]}]}, "unsupported_feature", "tools.0.allowed_callers"),
    ({"tools": TOOLS, "tool_choice": {"type": "mcp", "server_label": "x"}}, "invalid_argument", "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}, "invalid_argument", "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "invalid_argument", "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": 5}}, "invalid_argument", "tool_choice"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": [], "tools": []}},
        "invalid_argument",
        "tool_choice",
    ),
    (
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}},
        "invalid_argument",
        "tool_choice",
    ),
    (
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "other"}]}},
        "invalid_argument",
        "tool_choice",
    ),
    ({"tool_choice": "required"}, "invalid_argument", "tool_choice"),
    ({"tool_choice": 5, "tools": TOOLS}, "invalid_argument", "tool_choice"),
    ({"input": []}, "invalid_argument", "input"),
    ({"input": None}, "invalid_argument", "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "invalid_argument", "input.0.id"),
    ({"input": [{"id": "x"}]}, "invalid_argument", "input.0.id"),
    ({"input": [{"type": "item_reference"}]}, "invalid_argument", "input.0.id"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "unsupported_feature", "input.0.type"),
    ({"input": [{"content": "x"}]}, "invalid_argument", "input.0.role"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "invalid_argument", "input.0.content.0.text"),
    (
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}]},
        "invalid_argument",
        "input.0.encrypted_content",
    ),
    ({"input": "hello " * 5000}, "context_length_exceeded", "input"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "invalid_argument", "input.0"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "invalid_argument",
        "input.0.content.0.image_url",
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


def logprobs_of(response: openai.types.responses.Response) -> list[Any]:
    """The log-probabilities of an answer of one message."""
    (item,) = response.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "output_text"
    return part.logprobs or []


def test_log_probabilities(client: openai.OpenAI, http: httpx2.Client) -> None:
    """They are in the response and in the stream if they are asked for, as many as wanted, and nowhere else."""
    include: list[Any] = ["message.output_text.logprobs"]
    whole = client.responses.create(model="crafted", input="hello", temperature=0, include=include, top_logprobs=2)
    told = logprobs_of(whole)
    assert b"".join(bytes(token.bytes) for token in told).decode() == SCRIPTS["hello"].text()
    assert all(len(token.top_logprobs) == 2 and token.top_logprobs[0].bytes == token.bytes for token in told)
    assert whole.top_logprobs == 2
    body = {"input": "hello", "temperature": 0, "include": include, "top_logprobs": 2}
    events = stream_of(http, body)
    check_stream(events)
    assert without_ids(events[-1]["response"]) == without_ids(whole.to_dict())
    alone = client.responses.create(model="crafted", input="hello", include=include)
    assert logprobs_of(alone)[0].top_logprobs == []
    assert logprobs_of(client.responses.create(model="crafted", input="hello", top_logprobs=1))
    assert logprobs_of(client.responses.create(model="crafted", input="hello")) == []


def test_sealed_reasoning_comes_back(client: openai.OpenAI, http: httpx2.Client) -> None:
    """Without a store, reasoning goes to the client and back: as its content, or sealed alone."""
    include: list[Any] = ["reasoning.encrypted_content"]
    first = client.responses.create(model="crafted", input="think_tool", tools=TOOLS, store=False, include=include)
    items: list[Any] = [item.to_dict() for item in first.output]
    assert items[0]["encrypted_content"]
    question = {"role": "user", "content": "think_tool"}
    result = {"type": "function_call_output", "call_id": items[-1]["call_id"], "output": "sunny"}
    sealed = [{"type": "reasoning", "summary": [], "encrypted_content": items[0]["encrypted_content"]}, *items[1:]]
    counts = []
    for sent in (items, sealed, items[1:]):
        answer = http.post("/v1/responses", json={"input": [question, *sent, result], "tools": TOOLS, "store": False})
        assert answer.json()["output"][0]["content"][0]["text"] == SCRIPTS["after"].text()
        counts.append(answer.json()["usage"]["input_tokens"])
    # The crafted template shows no reasoning; that it is read is told in test_response_items.
    assert len(set(counts)) == 1


FORM = {
    "type": "json_schema",
    "name": "n",
    "schema": {
        "type": "object",
        "properties": {"n": {"type": "boolean"}},
        "required": ["n"],
        "additionalProperties": False,
    },
    "strict": True,
}
STRICT = {"type": "function", "name": "get_weather", "parameters": FORM["schema"], "strict": True}


@pytest.mark.parametrize("stream", [False, True])
def test_tools_and_a_form_together(http: httpx2.Client, stream: bool) -> None:
    """The model calls a tool or answers in the form; a forced call leaves the form aside."""
    # What this model would say is masked; in its place it likes calls best, but after the reasoning of "think".
    body = {"tools": [STRICT], "text": {"format": FORM}, "temperature": 0, "parallel_tool_calls": False}

    def output(fields: dict[str, Any]) -> list[dict[str, Any]]:
        whole = {**body, **fields}
        if not stream:
            made: list[dict[str, Any]] = http.post("/v1/responses", json=whole).json()["output"]
            return made
        last: list[dict[str, Any]] = stream_of(http, whole)[-1]["response"]["output"]
        return last

    thought, said = output({"input": "think"})
    assert thought["content"][0]["text"] == "Let me think."
    assert list(json.loads(said["content"][0]["text"])) == ["n"]
    for fields in ({"input": "tool"}, {"input": "hello"}, {"input": "think", "tool_choice": "required"}):
        *_, called = output(fields)
        assert (called["type"], called["name"]) == ("function_call", "get_weather")
        assert list(json.loads(called["arguments"])) == ["n"]
    thought, said = output({"input": "think", "tool_choice": "none"})
    assert list(json.loads(said["content"][0]["text"])) == ["n"]


def test_parsing_with_tools(client: openai.OpenAI) -> None:
    """OpenAI's `parse` sends tools and a form together and reads either, and so does its stream."""

    class Answer(pydantic.BaseModel):
        n: bool

    tools: list[Any] = [openai.pydantic_function_tool(Answer, name="get_weather")]
    said = client.responses.parse(model="crafted", input="think", text_format=Answer, tools=tools, temperature=0)
    assert isinstance(said.output_parsed, Answer)
    called = client.responses.parse(
        model="crafted", input="tool", text_format=Answer, tools=tools, temperature=0, parallel_tool_calls=False
    )
    assert called.output[0].type == "function_call"
    assert isinstance(called.output[0].parsed_arguments, Answer)
    with client.responses.stream(
        model="crafted", input="think", text_format=Answer, tools=tools, temperature=0
    ) as stream:
        assert stream.get_final_response().output_parsed == said.output_parsed


def test_allowed_tools(http: httpx2.Client) -> None:
    """All tools are shown to the model; a call of one that is not allowed is text."""
    tools = [{**TOOLS[0], "name": name} for name in ("get_weather", "get_time")]

    def ask(*names: str) -> dict[str, Any]:
        choice = {"type": "allowed_tools", "tools": [{"type": "function", "name": name} for name in names]}
        whole: dict[str, Any] = http.post(
            "/v1/responses", json={"input": "tools", "temperature": 0, "tools": tools, "tool_choice": choice}
        ).json()
        check("openresponses", "ResponseResource", whole)
        return whole

    both, one, none = ask("get_weather", "get_time"), ask("get_weather"), ask()
    assert [item["type"] for item in both["output"]] == ["function_call", "function_call"]
    assert [item["type"] for item in one["output"]] == ["function_call", "message"]
    assert "get_time" in one["output"][1]["content"][0]["text"]
    assert [item["type"] for item in none["output"]] == ["message"]
    assert len({whole["usage"]["input_tokens"] for whole in (both, one, none)}) == 1


@pytest.mark.parametrize(("effort", "reasons"), [("none", False), ("minimal", True), ("max", True)])
def test_effort(client: openai.OpenAI, effort: Any, reasons: bool) -> None:
    """No effort is no reasoning."""
    whole = client.responses.create(model="crafted", input="think", reasoning={"effort": effort, "summary": "auto"})
    assert ("reasoning" in [item.type for item in whole.output]) == reasons
    assert whole.reasoning is not None
    assert whole.reasoning.effort == effort


def test_truncation(http: httpx2.Client) -> None:
    """What does not fit is an error, unless the oldest turns may go."""
    turns = [{"role": "user", "content": "hello " * 250}, {"role": "assistant", "content": "Hi."}]
    body = {
        "input": [
            {"role": "system", "content": "Be brief."},
            *turns,
            *turns,
            *turns,
            {"role": "user", "content": "hello"},
        ]
    }
    refused = http.post("/v1/responses", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    cut = http.post("/v1/responses", json={**body, "truncation": "auto"}).json()
    assert (cut["status"], cut["truncation"]) == ("completed", "auto")
    assert 3000 < cut["usage"]["input_tokens"] < 4096
    short = http.post("/v1/responses", json={"input": "hello", "truncation": "auto"}).json()
    assert short["usage"]["input_tokens"] < 40
    never = http.post("/v1/responses", json={"input": "hello " * 5000, "truncation": "auto"})
    assert never.json()["error"]["code"] == "context_length_exceeded"
