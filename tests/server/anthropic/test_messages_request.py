"""What a body means for the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lib_mlx.errors import InvalidArgument, LibMlxError, UnsupportedFeature
from lib_mlx.generation import GenerationRequest, Message, Tool, ToolCall
from lib_mlx.server.anthropic.common import signature
from lib_mlx.server.anthropic.messages_request import MessagesRequest, to_generation
from lib_mlx.server.http import validate

USER = {"role": "user", "content": "Hi."}
SCHEMA = {"type": "object", "properties": {}}
TOOL = {"name": "f", "input_schema": SCHEMA}
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": "é"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "42"}


def generation(**fields: Any) -> GenerationRequest:
    """The engine's request for a body."""
    body = {"model": "m", "max_tokens": 2000, "messages": [USER], **fields}
    return to_generation(validate(MessagesRequest, json.loads(json.dumps(body))))


def messages(*turns: tuple[str, Any]) -> tuple[Message, ...]:
    """The engine's messages for roles and contents."""
    return generation(messages=[{"role": role, "content": content} for role, content in turns]).messages


def text(value: str, **fields: Any) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": value, **fields}


def test_strings_and_blocks_are_the_same() -> None:
    """A string is short for one block of text; a hint at caching changes nothing."""
    hint = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert generation(system="S", messages=[USER]) == generation(
        system=[text("S", **hint)], messages=[{"role": "user", "content": [text("Hi.", **hint)]}], **hint
    )
    assert generation(system="S").messages == (Message("system", "S"), Message("user", "Hi."))


def test_turns_in_a_row_are_joined() -> None:
    """Messages of one role are one turn: a user's texts apart, the assistant's as pieces of one text."""
    assert messages(
        ("user", "a"),
        ("user", [text("b"), text("c")]),
        ("assistant", [text("d"), text("e")]),
        ("assistant", "f"),
        ("system", "g"),
        ("user", "h"),
    ) == (Message("user", "a\nb\nc"), Message("assistant", "def"), Message("system", "g"), Message("user", "h"))


def test_a_round_of_tools() -> None:
    """Calls and reasoning belong to the answer; each result is a message that names its tool, texts come after."""
    answer = [
        {"type": "thinking", "thinking": "hm", "signature": "any"},
        {"type": "redacted_thinking", "data": "xyz"},
        text("Let me see."),
        CALL,
        {**CALL, "id": "t2", "name": "g", "input": {}},
    ]
    results = [{**RESULT, "tool_use_id": "t2", "content": [text("a"), text("b")]}, RESULT, text("So?")]
    assert messages(("user", "q"), ("assistant", answer), ("user", results)) == (
        Message("user", "q"),
        Message(
            "assistant",
            "Let me see.",
            reasoning="hm",
            tool_calls=(ToolCall("t1", "f", '{"x": "é"}'), ToolCall("t2", "g", "{}")),
        ),
        Message("tool", "a\nb", tool_call_id="t2", name="g"),
        Message("tool", "42", tool_call_id="t1", name="f"),
        Message("user", "So?"),
    )


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"content": "no"}, "no"),
        ({"content": "no", "is_error": False}, "no"),
        ({"content": "no", "is_error": True}, "Error: no"),
        ({"is_error": True}, "Error"),
        ({}, ""),
        ({"content": []}, ""),
    ],
)
def test_results_of_tools(result: dict[str, Any], expected: str) -> None:
    """A result may be empty; that of a tool that failed says so to the model."""
    block = {"type": "tool_result", "tool_use_id": "t1", **result}
    assert messages(("user", "q"), ("assistant", [CALL]), ("user", [block]))[-1].content == expected


def test_hidden_reasoning_comes_back() -> None:
    """A block that does not show its text carries it in the signature; another server's carries none."""
    for sign, expected in ((signature("hm"), "hm"), ("EqQBCgIYAhIM", ""), ("", "")):
        block = {"type": "thinking", "thinking": "", "signature": sign}
        assert messages(("user", "q"), ("assistant", [block, text("a")]), ("user", "q"))[1].reasoning == expected


def test_the_clients_own_objects_come_back() -> None:
    """Null fields and the one that the client adds when it parses are let through."""
    answer = [
        {**text("a"), "citations": None, "parsed_output": None},
        {**CALL, "caller": None, "toolset_name": None, "cache_control": None},
    ]
    assert len(messages(("user", "q"), ("assistant", answer), ("user", [RESULT]))) == 3
    direct = [{**CALL, "caller": {"type": "direct"}}]
    assert len(messages(("user", "q"), ("assistant", direct), ("user", [RESULT]))) == 3


def test_an_answer_that_has_begun() -> None:
    """The text of a last turn of the assistant's is what the answer goes on from; an empty one asks for nothing."""
    for content in ("Dear", [text("De"), text("ar")]):
        request = generation(messages=[USER, {"role": "assistant", "content": content}])
        assert (request.prefill, request.messages) == ("Dear", (Message("user", "Hi."),))
    for content in ("", []):
        request = generation(messages=[USER, {"role": "assistant", "content": content}])
        assert (request.prefill, request.messages) == ("", (Message("user", "Hi."),))


def test_sampling_and_limits() -> None:
    """They are passed on; the checkpoint's defaults stand for what is left out."""
    request = generation(temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["a", "b"], max_tokens=7)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 5)
    assert (request.stop, request.max_tokens) == (("a", "b"), 7)
    assert generation().sampling.temperature is None
    assert generation(max_tokens=0).max_tokens == 1


@pytest.mark.parametrize(
    ("options", "thinking", "budget"),
    [
        (None, None, None),
        ({"type": "disabled"}, False, None),
        ({"type": "adaptive"}, True, None),
        ({"type": "adaptive", "display": "summarized"}, True, None),
        ({"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, True, 1024),
    ],
)
def test_thinking(options: Any, thinking: bool | None, budget: int | None) -> None:
    """It is turned on or off, with a budget where one is given."""
    request = generation(thinking=options)
    assert (request.thinking, request.reasoning_budget) == (thinking, budget)


@pytest.mark.parametrize(
    ("choice", "offered", "chosen", "parallel"),
    [
        (None, 2, "auto", True),
        ({"type": "auto"}, 2, "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, 2, "auto", False),
        ({"type": "any", "disable_parallel_tool_use": False}, 2, "required", True),
        ({"type": "tool", "name": "g", "disable_parallel_tool_use": True}, 2, "g", False),
        ({"type": "none"}, 0, "auto", True),
    ],
)
def test_tool_choice(choice: Any, offered: int, chosen: str, parallel: bool) -> None:
    """Each choice has its meaning; with `none` no tool is offered."""
    request = generation(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    assert (len(request.tools), request.tool_choice, request.parallel_tool_calls) == (offered, chosen, parallel)


def test_tools() -> None:
    """A tool's fields are passed on; those that ask for what happens anyway are let through."""
    tool = {
        **TOOL,
        "type": "custom",
        "description": "d",
        "strict": True,
        "cache_control": {"type": "ephemeral"},
        "allowed_callers": ["direct"],
        "defer_loading": False,
        "eager_input_streaming": True,
        "input_examples": [],
    }
    assert generation(tools=[tool]).tools == (Tool("f", "d", SCHEMA, strict=True),)


@pytest.mark.parametrize("param", ["output_config.format", "output_format"])
def test_the_form_of_the_answer(param: str) -> None:
    """A schema is a constraint, under its present name and the one before."""
    form = {"type": "json_schema", "schema": SCHEMA}
    fields = {"output_format": form} if param == "output_format" else {"output_config": {"format": form}}
    constraint = generation(**fields).constraint
    assert constraint is not None
    assert (constraint.kind, constraint.value, constraint.param) == ("json_schema", SCHEMA, param)


def test_what_changes_nothing() -> None:
    """Fields that ask for what happens anyway are let through."""
    plain = generation()
    assert plain == generation(
        metadata={"user_id": "u"},
        service_tier="standard_only",
        speed="standard",
        stream=False,
        output_config={"effort": "high"},
        container=None,
        diagnostics=None,
        inference_geo=None,
        tools=[],
        tool_choice={"type": "none"},
    )


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
FILE = {"type": "image", "source": {"type": "file", "file_id": "file_1"}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
ASSISTANT = {"role": "assistant", "content": [CALL]}
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "user", "content": [FILE]}]}, "messages.0.content.0.source"),
    ({"messages": [{"role": "user", "content": [text("a"), DOCUMENT]}]}, "messages.0.content.1"),
    ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "messages.0.content.0"),
    ({"messages": [USER, {"role": "assistant", "content": [{"type": "server_tool_use"}]}]}, "messages.1.content.0"),
    (
        {"messages": [USER, ASSISTANT, {"role": "user", "content": [{**RESULT, "content": [DOCUMENT]}]}]},
        "messages.2.content.0.content.0",
    ),
    (
        {"messages": [USER, ASSISTANT, {"role": "user", "content": [{**RESULT, "toolset_name": "b"}]}]},
        "messages.2.content.0.toolset_name",
    ),
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [{**CALL, "caller": {"type": "code_execution_20250825"}}]},
                {"role": "user", "content": [RESULT]},
            ]
        },
        "messages.1.content.0.caller",
    ),
    ({"messages": [{"role": "user", "content": [text("a", citations=[{}])]}]}, "messages.0.content.0.citations"),
    (
        {"messages": [USER, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, text("a")]}]},
        "messages.1.content.0",
    ),
    ({"system": [IMAGE]}, "system.0"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]}, "tools.0.type"),
    ({"tools": [TOOL, {"type": "bash_20250124", "name": "bash"}]}, "tools.1.type"),
    ({"tools": [{"type": "browser_toolset_20260801"}]}, "tools.0.type"),
    ({"tools": [{**TOOL, "allowed_callers": ["code_execution_20260521"]}]}, "tools.0.allowed_callers"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "tools.0.defer_loading"),
    ({"tools": [{**TOOL, "input_examples": [{}]}]}, "tools.0.input_examples"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"),
    ({"output_config": {"effort": "low"}}, "output_config.effort"),
    ({"output_config": {"effort": "max"}}, "output_config.effort"),
    ({"speed": "fast"}, "speed"),
    ({"container": "c"}, "container"),
    ({"diagnostics": {"previous_message_id": None}}, "diagnostics"),
    ({"inference_geo": "us"}, "inference_geo"),
]


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED)
def test_what_cannot_be_honoured_is_named(fields: dict[str, Any], param: str) -> None:
    """It is refused, never ignored."""
    with pytest.raises(UnsupportedFeature) as caught:
        generation(**fields)
    assert caught.value.param == param
    assert param in caught.value.message


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi."}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [text("")]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages.0.content.0.type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    ({"messages": [{"role": "user", "content": [text("a", colour=1)]}]}, "messages.0.content.0.colour"),
    (
        {"messages": [{"role": "user", "content": [text("a", cache_control={"type": "x"})]}]},
        "messages.0.content.0.cache_control.type",
    ),
    ({"messages": [{**USER, "name": "x"}]}, "messages.0.name"),
    ({"messages": [{"role": "user", "content": [CALL]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [RESULT]}]}, "messages.0.content.0.tool_use_id"),
    ({"messages": [USER, {"role": "assistant", "content": [RESULT]}]}, "messages.1.content.0"),
    ({"messages": [USER, {"role": "assistant", "content": [RESULT]}, USER]}, "messages.1.content.0"),
    ({"messages": [USER, {"role": "system", "content": [RESULT]}]}, "messages.1.content.0"),
    ({"messages": [USER, ASSISTANT]}, "messages.1.content.0"),
    ({"messages": [USER, ASSISTANT, USER]}, "messages"),
    ({"messages": [USER, ASSISTANT, {"role": "system", "content": "s"}]}, "messages"),
    (
        {"messages": [USER, ASSISTANT, {"role": "user", "content": [RESULT, RESULT]}]},
        "messages.2.content.1.tool_use_id",
    ),
    ({"messages": [USER, ASSISTANT, {"role": "user", "content": [text("a"), RESULT]}]}, "messages.2.content.1"),
    (
        {"messages": [USER, {"role": "assistant", "content": [CALL, CALL]}, {"role": "user", "content": [RESULT]}]},
        "messages.1.content.1.id",
    ),
    ({"messages": [USER, {"role": "assistant", "content": "Dear "}]}, "messages.1.content"),
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": "lib_mlx:!"}]},
                USER,
            ]
        },
        "messages.1.content.0.signature",
    ),
    ({"system": 1}, "system"),
    ({"model": None}, "model"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"temperature": 1.1}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"stop_sequences": "a"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences.0"),
    ({"stop_sequences": ["a"] * 65}, "stop_sequences"),
    ({"stream": "yes"}, "stream"),
    ({"metadata": {"colour": "red"}}, "metadata.colour"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 1024}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "disabled", "display": "omitted"}}, "thinking.display"),
    ({"thinking": {"type": "maybe"}}, "thinking.type"),
    ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
    ({"tools": [{**TOOL, "name": "f g"}]}, "tools.0.name"),
    ({"tools": [{**TOOL, "input_schema": {"type": "string"}}]}, "tools.0.input_schema.type"),
    ({"tools": [TOOL, TOOL]}, "tools.1.name"),
    ({"tools": [{**TOOL, "parameters": {}}]}, "tools.0.parameters"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "tool_choice.name"),
    ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [TOOL]}, "tool_choice.name"),
    ({"tool_choice": {"type": "any", "name": "f"}, "tools": [TOOL]}, "tool_choice.name"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "output_config.format.type"),
    (
        {
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
            "output_format": {"type": "json_schema", "schema": {}},
        },
        "output_format",
    ),
    ({"max_tokens": 0, "stream": True}, "stream"),
    ({"max_tokens": 0, "tools": [TOOL], "tool_choice": {"type": "any"}}, "tool_choice"),
    ({"max_tokens": 0, "output_format": {"type": "json_schema", "schema": {}}}, "output_config.format"),
    ({"colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("fields", "param"), INVALID)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    """A field of a wrong name, type or value, or one that contradicts another, is an error that names it."""
    with pytest.raises(InvalidArgument) as caught:
        generation(**fields)
    assert caught.value.param == param


def test_required_fields() -> None:
    """A body needs a model, messages and a limit."""
    for name in ("model", "messages", "max_tokens"):
        body = {"model": "m", "messages": [USER], "max_tokens": 1}
        del body[name]
        with pytest.raises(LibMlxError) as caught:
            validate(MessagesRequest, body)
        assert caught.value.param == name
