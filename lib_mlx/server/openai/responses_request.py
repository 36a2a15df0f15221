"""The body of `POST /v1/responses` and what it means for the engine.

Fields beyond OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `seed`, `thinking`, `chat_template_kwargs`,
`cache_salt`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import GenerationRequest, Message, Role, Tool, ToolCall
from lib_mlx.server.fields import FunctionName, constraint, refuse, refuse_unless
from lib_mlx.server.http import WireModel
from lib_mlx.server.openai.common import (
    CommonFields,
    choose_tools,
    refuse_common,
    sampling,
    thinking,
)


class Part(WireModel):
    """One part of an item's content or output. Only text is understood; the rest is parsed to be refused."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None
    """Added by OpenAI's own client when it parses."""
    detail: Any = None
    image_url: Any = None
    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None
    input_audio: Any = None
    video_url: Any = None


class InputItem(WireModel):
    """One item of the input; which fields may be set depends on `type` (absent: a message)."""

    type: str | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    phase: str | None = None
    call_id: str | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None
    encrypted_content: str | None = None
    parsed_arguments: Any = None
    """Added by OpenAI's own client when it parses."""


class FunctionTool(WireModel):
    """A function the model may call; other kinds of tools are parsed to be refused by name."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(WireModel):
    """The form of the answer."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningOptions(WireModel):
    """How much to reason."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(CommonFields):
    """The whole body."""

    input: str | list[InputItem]
    instructions: str | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[FunctionTool] | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    # Fields that are refused unless they ask for what happens anyway.
    top_logprobs: int | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    truncation: str | None = None
    include: list[str] | None = None
    max_tool_calls: int | None = None
    prompt: Any = None
    context_management: Any = None


def to_generation(body: ResponsesRequest) -> GenerationRequest:
    """Return the engine's request.

    Raises:
        UnsupportedFeature: an option cannot be honoured.
        InvalidArgument: an item lacks a field its type needs.
    """
    _refuse_unsupported(body)
    messages = [Message("system", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        messages.append(Message("user", body.input))
    else:
        messages += to_messages(body.input)
    if not messages:
        raise InvalidArgument("The input is empty.", hint="Give a string or at least one item.", param="input")
    tools, tool_choice = choose_tools(_tools(body), body.tool_choice)
    return GenerationRequest(
        messages=tuple(messages),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        sampling=sampling(body),
        max_tokens=body.max_output_tokens,
        thinking=thinking(body.reasoning.effort if body.reasoning else None, body.thinking),
        template_kwargs=body.chat_template_kwargs or {},
        cache_salt=body.cache_salt or "",
        constraint=constraint(body.text.format if body.text else None, "text.format"),
    )


def _refuse_unsupported(body: ResponsesRequest) -> None:
    refuse_common(body)
    refuse_unless("top_logprobs", body.top_logprobs, 0, why="token probabilities are not reported")
    refuse_unless("background", body.background, False, why="responses are not stored")
    refuse_unless("previous_response_id", body.previous_response_id, why="responses are not stored")
    refuse_unless("truncation", body.truncation, "disabled", why="nothing is cut silently")
    refuse_unless("include", body.include, [], why="there is nothing further to include")
    refuse_unless(
        "stream_options", body.stream_options, {}, {"include_obfuscation": False}, why="nothing is obfuscated"
    )
    for param in ("conversation", "max_tool_calls", "prompt", "context_management"):
        refuse_unless(param, getattr(body, param), why="this server does not offer it")
    if body.text is not None:
        refuse_unless("text.verbosity", body.text.verbosity, "medium", why="this model has no such control")
    if body.reasoning is not None:
        refuse_unless("reasoning.summary", body.reasoning.summary, "auto", why="reasoning is given whole")
        refuse_unless("reasoning.generate_summary", body.reasoning.generate_summary, why="it is deprecated")


def _tools(body: ResponsesRequest) -> list[Tool]:
    tools = []
    for index, tool in enumerate(body.tools or ()):
        if tool.type != "function":
            refuse(f"tools.{index}.type", f"{tool.type!r} tools do not exist here", hint="Use functions.")
        if tool.name is None:
            raise InvalidArgument("A function needs a name.", param=f"tools.{index}.name")
        parameters = tool.parameters or {"type": "object"}
        tools.append(Tool(tool.name, tool.description or "", parameters, bool(tool.strict)))
    return tools


def to_messages(items: list[InputItem]) -> list[Message]:
    """Return the conversation the items describe; what one assistant turn was split into is joined again."""
    messages: list[Message] = []
    reasoning = ""
    for index, item in enumerate(items):
        where = f"input.{index}"
        match item.type:
            case None | "message":
                message = _message(item, where, reasoning)
            case "reasoning":
                reasoning += _text(item.content, f"{where}.content")
                continue
            case "function_call":
                messages.append(_with_call(messages, item, where, reasoning))
                reasoning = ""
                continue
            case "function_call_output":
                message = _tool_output(item, where)
            case _:
                refuse(f"{where}.type", f"{item.type!r} items cannot be read here", hint="Remove the item.")
                raise AssertionError  # refuse() raises
        reasoning = ""
        messages.append(message)
    return messages


def _message(item: InputItem, where: str, reasoning: str) -> Message:
    if item.role is None:
        raise InvalidArgument("A message needs a role.", param=f"{where}.role")
    if item.content is None:
        raise InvalidArgument("The message has no content.", param=f"{where}.content")
    role: Role = "system" if item.role == "developer" else item.role
    kept = reasoning if role == "assistant" else ""
    return Message(role, _text(item.content, f"{where}.content"), reasoning=kept)


def _with_call(messages: list[Message], item: InputItem, where: str, reasoning: str) -> Message:
    """Return an assistant message with `item`'s call, taking over the one it continues."""
    if item.call_id is None or item.name is None or item.arguments is None:
        raise InvalidArgument("A function call needs call_id, name and arguments.", param=where)
    call = ToolCall(item.call_id, item.name, item.arguments)
    if messages and messages[-1].role == "assistant":
        previous = messages.pop()
        return Message(
            "assistant",
            previous.content,
            reasoning=previous.reasoning + reasoning,
            tool_calls=(*previous.tool_calls, call),
        )
    return Message("assistant", reasoning=reasoning, tool_calls=(call,))


def _tool_output(item: InputItem, where: str) -> Message:
    if item.call_id is None or item.output is None:
        raise InvalidArgument("A function call's output needs call_id and output.", param=where)
    return Message("tool", _text(item.output, f"{where}.output"), tool_call_id=item.call_id)


def _text(content: str | list[Part] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        if part.type not in {"input_text", "output_text", "text", "reasoning_text", "refusal"}:
            refuse(f"{where}.{index}", f"this model reads text, not {part.type!r}", hint="Send text parts.")
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise InvalidArgument("The part has no text.", param=f"{where}.{index}.text")
        texts.append(text)
    return "".join(texts)
