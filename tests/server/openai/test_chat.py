"""Chat Completions: the fold, and the server through OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest

from lib_mlx.errors import Cancelled
from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, Timings, ToolCallDelta, Usage
from lib_mlx.server.openai.chat import ChatFold
from lib_mlx.server.openai.chunks import render
from tests.checkpoints import SCRIPTS
from tests.server.specs import check

if TYPE_CHECKING:
    import httpx2
    from openai.types.chat import ChatCompletionChunk

    import lib_mlx
    from lib_mlx.generation import GenerationEvent

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
]
ALL_SCRIPTS = [name for name in SCRIPTS if name != "loop"]


def user(text: str) -> list[Any]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


EVENTS: list[GenerationEvent] = [
    ReasoningDelta("hm"),
    TextDelta("a"),
    TextDelta("b"),
    ToolCallDelta(0, "call_1", "f", "{}"),
    Finished("tool_calls", Usage(3, 1, 5, 1), Timings()),
]


def test_the_body_and_the_chunks_are_the_same_fold() -> None:
    """The same events give the same text, calls and usage streamed or not, in OpenAI's shapes."""
    fold = ChatFold("m", include_usage=True)
    chunks = fold.opening() + [chunk for event in EVENTS for chunk in fold.add(event)]
    body = fold.body()
    check("openai", "CreateChatCompletionResponse", body)
    for chunk in chunks:
        check("openai", "CreateChatCompletionStreamResponse", chunk)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    message = body["choices"][0]["message"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"] == "ab"
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"] == [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert chunks[-1]["usage"] == body["usage"]
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 1
    assert [("role" in delta) for delta in deltas] == [True] + [False] * (len(deltas) - 1)


def test_an_error_after_the_stream_began_is_an_error_event_and_the_end() -> None:
    """A failed stream says why and still ends with [DONE]."""
    out = render(ChatFold("m"), [(0, TextDelta("a")), (0, Failed(Cancelled("gone")))])
    assert out.count(b"data: ") == 3
    assert b'"code":"cancelled"' in out
    assert out.endswith(b"data: [DONE]\n\n")


def test_a_simple_answer(client: openai.OpenAI) -> None:
    """The answer, the reason for its end and the token counts arrive."""
    answer = client.chat.completions.create(model="crafted", messages=user("hello"), temperature=0)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (SCRIPTS["hello"].text(), "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(SCRIPTS["hello"].pieces) + 1
    assert answer.usage.model_extra == {
        "input_tokens": answer.usage.prompt_tokens,
        "output_tokens": answer.usage.completion_tokens,
    }


def joined(chunks: list[ChatCompletionChunk]) -> dict[str, Any]:
    """Fold a client's chunks as a client would."""
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    return {
        "content": "".join(delta.content or "" for delta in deltas),
        "reasoning": "".join((delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas),
        "calls": [
            (call.function.name, call.function.arguments)
            for delta in deltas
            for call in delta.tool_calls or ()
            if call.function
        ],
        "finish": [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason],
    }


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_streamed_or_not_the_answer_is_the_same(client: openai.OpenAI, script: str) -> None:
    """Every script gives the same content, reasoning, calls, finish reason and usage both ways."""
    request: dict[str, Any] = {"model": "crafted", "messages": user(script), "temperature": 0, "tools": TOOLS}
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    streamed = joined(chunks)
    message = whole.choices[0].message
    assert streamed["content"] == (message.content or "")
    assert streamed["reasoning"] == (message.model_extra or {}).get("reasoning_content", "")
    calls = [
        (call.function.name, call.function.arguments) for call in message.tool_calls or () if call.type == "function"
    ]
    assert streamed["calls"] == calls
    assert streamed["finish"] == [whole.choices[0].finish_reason]
    counts = [usage and (usage.prompt_tokens, usage.completion_tokens) for usage in (whole.usage, chunks[-1].usage)]
    assert counts[0] == counts[1]
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_tool_conversation(client: openai.OpenAI) -> None:
    """A call, its result and the answer to it: the whole round, with OpenAI's message objects sent back."""
    messages = user("think_tool")
    first = client.chat.completions.create(model="crafted", messages=messages, tools=TOOLS).choices[0].message
    assert first.tool_calls
    messages += [
        first.model_dump(exclude_unset=True),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"},
    ]
    second = client.chat.completions.create(model="crafted", messages=messages, tools=TOOLS).choices[0].message
    assert second.content == SCRIPTS["after"].text()


def test_the_clients_own_objects_come_back(client: openai.OpenAI) -> None:
    """What the client's stream and parse helpers return can be sent back as it is, with the fields they add."""
    messages = user("think_tool")
    with client.chat.completions.stream(model="crafted", messages=messages, tools=TOOLS) as stream:
        message = stream.get_final_completion().choices[0].message
    sent: Any
    for sent in (message, message.model_dump(), message.to_dict()):
        assert message.tool_calls
        answer = client.chat.completions.create(
            model="crafted",
            messages=[*messages, sent, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "x"}],
            tools=TOOLS,
        )
        assert answer.choices[0].message.content == SCRIPTS["after"].text()


def test_stop_and_max_tokens(client: openai.OpenAI) -> None:
    """A stop sequence is not shown; a cut answer says `length`; both names of the limit work."""
    create = client.chat.completions.create
    stopped = create(model="crafted", messages=user("stopword"), stop="STOP").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("one two ", "stop")
    for limit in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
        cut = create(model="crafted", messages=user("loop"), **limit)
        assert (cut.choices[0].finish_reason, cut.usage and cut.usage.completion_tokens) == ("length", 5)


def test_cached_tokens_are_counted(client: openai.OpenAI) -> None:
    """A prompt that was seen before is not computed again, and the usage says so."""
    messages = user("hello, said once and then again")
    first, second = (client.chat.completions.create(model="crafted", messages=messages).usage for _ in range(2))
    assert first is not None
    assert second is not None
    assert second.prompt_tokens_details is not None
    assert second.prompt_tokens_details.cached_tokens == second.prompt_tokens - 1
    assert first.prompt_tokens == second.prompt_tokens


def test_several_answers(client: openai.OpenAI, http: httpx2.Client) -> None:
    """`n` answers come with their numbers, streamed or not; the prompt counts once."""
    create = client.chat.completions.create
    request: dict[str, Any] = {"model": "crafted", "messages": user("unicode"), "temperature": 0, "n": 3}
    whole = create(**request)
    texts = [choice.message.content for choice in whole.choices]
    assert texts == [SCRIPTS["unicode"].text()] * 3
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    single = create(**{**request, "n": 1}).usage
    assert whole.usage is not None
    assert single is not None
    assert whole.usage.prompt_tokens == single.prompt_tokens
    assert whole.usage.completion_tokens == 3 * single.completion_tokens
    streamed = ["", "", ""]
    ends = []
    for chunk in create(**request, stream=True, stream_options={"include_usage": True}):
        check("openai", "CreateChatCompletionStreamResponse", chunk.model_dump(exclude_unset=True))
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason == "stop" else []
        if chunk.usage:
            assert chunk.usage.completion_tokens == whole.usage.completion_tokens
    assert streamed == texts
    assert sorted(ends) == [0, 1, 2]
    hot = create(**{**request, "temperature": 2, "seed": 1, "logit_bias": {"65": 100, "66": 100}, "max_tokens": 20})
    assert len({choice.message.content for choice in hot.choices}) == 3
    check("openai", "CreateChatCompletionResponse", hot.model_dump(exclude_unset=True))
    assert http.get("/health").json()["in_flight"] == 0


def test_several_answers_to_a_client_that_leaves(client: openai.OpenAI, http: httpx2.Client) -> None:
    """When the client goes away, all of them end."""
    with client.chat.completions.create(model="crafted", messages=user("loop"), n=4, stream=True) as stream:
        next(iter(stream))
    until = time.monotonic() + 5
    while http.get("/health").json()["in_flight"]:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["unicode", "think"])
def test_log_probabilities(client: openai.OpenAI, name: str) -> None:
    """Each token of the answer comes with its probability and the likeliest ones, streamed or not."""
    request: dict[str, Any] = {"model": "crafted", "messages": user(name), "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**request, top_logprobs=2)
    check("openai", "CreateChatCompletionResponse", whole.model_dump(exclude_unset=True))
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content or []
    joined = b"".join(bytes(token.bytes or ()) for token in content).decode()
    assert joined.strip() == whole.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 and token.top_logprobs[0].token == token.token for token in content)
    chunks = client.chat.completions.create(**request, stream=True)
    streamed = [
        token.token
        for chunk in chunks
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert streamed == [token.token for token in content]


def test_a_cache_salt_separates_callers(client: openai.OpenAI) -> None:
    """What one caller asked is computed again for another with a salt of its own."""
    messages = user("hello, said to two callers")
    create = client.chat.completions.create
    usages = [
        create(model="crafted", messages=messages, extra_body={"cache_salt": salt}).usage for salt in ("a", "a", "b")
    ]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages if usage and usage.prompt_tokens_details]
    assert cached[1] > 0
    assert cached[0] == cached[2] == 0


def test_thinking_per_request(client: openai.OpenAI) -> None:
    """`thinking` and `reasoning_effort` reach the chat template."""
    create = client.chat.completions.create
    on = create(model="crafted", messages=user("think")).choices[0].message
    assert (on.model_extra or {})["reasoning_content"] == "Let me think."
    off = create(model="crafted", messages=user("think"), extra_body={"thinking": False}).choices[0].message
    none = create(model="crafted", messages=user("think"), reasoning_effort="none").choices[0].message
    for message in (off, none):
        assert "reasoning_content" not in (message.model_extra or {})
        assert message.content == "The answer is 42"


def test_content_parts_and_roles(client: openai.OpenAI) -> None:
    """Text parts are joined; `developer` is a system message."""
    answer = client.chat.completions.create(
        model="crafted",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
        ],
    )
    assert answer.choices[0].message.content == SCRIPTS["hello"].text()


def test_the_asynchronous_client_and_concurrency(server: lib_mlx.Server) -> None:
    """Many streams at once each get their own answer, through the asynchronous client."""
    names = [name for name in ALL_SCRIPTS if name not in {"empty", "bad_utf8"}] * 2

    async def one(client: openai.AsyncOpenAI, name: str) -> str:
        stream = await client.chat.completions.create(model="crafted", messages=user(name), stream=True, temperature=0)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def everything() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(one(client, name) for name in names))

    for name, text in zip(names, asyncio.run(everything()), strict=True):
        if name.startswith("think"):
            assert text == SCRIPTS[name].text(thinking=True).rpartition("</think>")[2].lstrip()
        else:
            assert text == SCRIPTS[name].text()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 0}, "invalid_argument", "n"),
    ({"n": 129}, "invalid_argument", "n"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_argument", "top_logprobs"),
    ({"top_logprobs": 2}, "invalid_argument", "top_logprobs"),
    ({"response_format": {"type": "xml"}}, "unsupported_feature", "response_format"),
    ({"response_format": {"type": "json_schema"}}, "invalid_argument", "response_format"),
    ({"tool_choice": "required"}, "invalid_argument", "tool_choice"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": TOOLS},
        "invalid_argument",
        "tool_choice",
    ),
    ({"store": True}, "unsupported_feature", "store"),
    ({"temperature": 3}, "invalid_argument", "temperature"),
    ({"temperature": "hot"}, "invalid_argument", "temperature"),
    ({"top_p": -0.1}, "invalid_argument", "top_p"),
    ({"max_tokens": 0}, "invalid_argument", "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_argument", "max_completion_tokens"),
    ({"stop": ["a"] * 5}, "invalid_argument", "stop"),
    ({"stop": ""}, "invalid_argument", "stop.0"),
    ({"logit_bias": {"99999999": 1}}, "invalid_argument", "logit_bias"),
    ({"logit_bias": {"5": 101}}, "invalid_argument", "logit_bias.5"),
    ({"messages": []}, "invalid_argument", "messages"),
    ({"messages": [{"role": "alien", "content": "x"}]}, "invalid_argument", "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "invalid_argument", "messages.0.content"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "invalid_argument", "tools.0.type"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_argument", "messages.0.tool_call_id"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid_argument", "messages.0.content.0.text"),
    (
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "unsupported_feature",
        "messages.0.content.0",
    ),
    ({"stream_options": {"include_usage": True}}, "invalid_argument", "stream_options"),
    ({"topP": 1}, "invalid_argument", "topP"),
    ({"colour": "red"}, "invalid_argument", "colour"),
    ({"chat_template_kwargs": {"tokenize": False}}, "invalid_argument", "chat_template_kwargs.tokenize"),
    ({"messages": [{"role": "user", "content": "x " * 5000}]}, "context_length_exceeded", "messages"),
]


@pytest.mark.parametrize(("fields", "code", "param"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(http: httpx2.Client, fields: dict[str, Any], code: str, param: str, stream: bool) -> None:
    """What cannot be honoured is a 400 that names it, streamed or not, and the server still answers."""
    body = {"model": "crafted", "messages": user("hello"), "stream": stream, **fields}
    if "stream_options" in fields:
        body["stream"] = False
    answer = http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"
    assert http.get("/health").status_code == 200


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}


def test_response_format(client: openai.OpenAI) -> None:
    """A JSON schema is guaranteed, streamed or not, by OpenAI's own parameters."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    create = client.chat.completions.create
    request: dict[str, Any] = {"model": "crafted", "messages": user("hello"), "response_format": form}
    request |= {"max_tokens": 100, "reasoning_effort": "none"}
    whole = create(**request)
    chunks = create(**request, stream=True)
    for text in (whole.choices[0].message.content or "", joined(list(chunks))["content"]):
        assert list(json.loads(text)) == ["city"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "find"}}])
def test_forced_tool_calls(client: openai.OpenAI, choice: Any) -> None:
    """A model that would chat calls the tool, with arguments that fit."""
    tool: Any = {"type": "function", "function": {"name": "find", "parameters": CITY, "strict": True}}
    answer = client.chat.completions.create(
        model="crafted",
        messages=user("hello"),
        tools=[tool],
        tool_choice=choice,
        parallel_tool_calls=False,
        reasoning_effort="none",
        max_tokens=100,
    ).choices[0]
    (call,) = answer.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, list(json.loads(call.function.arguments))) == ("find", ["city"])
    assert answer.finish_reason == "tool_calls"


def test_an_unsupported_schema_is_named(http: httpx2.Client) -> None:
    """What cannot be guaranteed is a 400 that says which keyword."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    answer = http.post("/v1/chat/completions", json={"messages": user("hello"), "response_format": form})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_feature", "response_format")
    assert "uniqueItems" in error["message"]


def test_tools_and_a_form_together(client: openai.OpenAI) -> None:
    """The model answers in the form or calls a tool, streamed or not; a forced call leaves the form aside."""
    tool: Any = {"type": "function", "function": {"name": "find", "parameters": CITY, "strict": True}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    request: dict[str, Any] = {"model": "crafted", "response_format": form, "tools": [tool], "temperature": 0}
    request |= {"parallel_tool_calls": False, "max_tokens": 200}
    create = client.chat.completions.create
    # What this model would say is masked; in its place it likes calls best, but after the reasoning of "think".
    said = create(**request, messages=user("think")).choices[0]
    assert list(json.loads(said.message.content or "")) == ["city"]
    assert joined(list(create(**request, messages=user("think"), stream=True)))["content"] == said.message.content
    for fields in ({"messages": user("tool")}, {"messages": user("think"), "tool_choice": "required"}):
        called = create(**request, **fields).choices[0]
        (call,) = called.message.tool_calls or []
        assert call.type == "function"
        assert list(json.loads(call.function.arguments)) == ["city"]
        streamed = joined(list(create(**request, **fields, stream=True)))
        assert streamed["calls"] == [("find", call.function.arguments)]


def test_allowed_tools(client: openai.OpenAI) -> None:
    """A call of a tool that is not allowed is text."""
    function = TOOLS[0]["function"]
    tools: Any = [{"type": "function", "function": {**function, "name": n}} for n in ("get_weather", "get_time")]
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
    answer = client.chat.completions.create(
        model="crafted", messages=user("tools"), temperature=0, tools=tools, tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_time"
    assert "get_weather" in (answer.choices[0].message.content or "")
