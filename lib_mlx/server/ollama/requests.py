"""The bodies of `POST /api/generate` and `POST /api/chat` and what they mean for the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import GenerationRequest, Message, Tool, ToolCall
from lib_mlx.server.fields import FunctionName, refuse, refuse_unless
from lib_mlx.server.http import WireModel
from lib_mlx.server.media import image_at, image_in, message_of
from lib_mlx.server.ollama.common import GenerationFields

if TYPE_CHECKING:
    from lib_mlx.generation import Image


class GenerateBody(GenerationFields):
    """The body of `POST /api/generate`."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[str] | None = None
    # Fields that are refused unless they ask for what happens anyway.
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None


class CalledFunction(WireModel):
    """The function of a call in a conversation's history."""

    name: FunctionName
    arguments: dict[str, Any] = Field(default_factory=dict)
    index: int | None = None


class HistoryCall(WireModel):
    """A call of an earlier assistant message."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class ChatMessage(WireModel):
    """One message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[HistoryCall] | None = None
    tool_name: str | None = None
    name: str | None = None
    """Ollama's older name for `tool_name`."""
    tool_call_id: str | None = None


class FunctionDefinition(WireModel):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(WireModel):
    """A tool; only functions exist."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class ChatBody(GenerationFields):
    """The body of `POST /api/chat`."""

    messages: list[ChatMessage] = Field(default_factory=list)
    tools: list[ToolDefinition] | None = None


def generate_request(body: GenerateBody) -> GenerationRequest:
    """Return the engine's request; raises UnsupportedFeature and InvalidArgument by name."""
    body.settings.check()
    refuse_unless("suffix", body.suffix, "", why="this server fills no gaps")
    refuse_unless("template", body.template, "", why="the model's own template is used")
    refuse_unless("context", body.context, [], why="send the conversation to /api/chat")
    for param in ("width", "height", "steps"):
        refuse_unless(param, getattr(body, param), 0, why="this server makes no images")
    prompt = body.prompt or ""
    if body.raw:
        refuse_unless("system", body.system, "", why="a raw prompt is all there is")
        refuse_unless("images", body.images, [], why="a raw prompt is all there is")
        return _request(body, prompt=prompt)
    system = (Message("system", body.system),) if body.system else ()
    return _request(body, messages=(*system, message_of("user", [*_images(body.images, "images"), prompt])))


def chat_request(body: ChatBody) -> GenerationRequest:
    """Return the engine's request; raises UnsupportedFeature and InvalidArgument by name."""
    body.settings.check()
    tools = [
        Tool(
            tool.function.name,
            tool.function.description or "",
            tool.function.parameters or {"type": "object"},
            bool(tool.function.strict),
        )
        for tool in body.tools or ()
    ]
    return _request(body, messages=tuple(_messages(body.messages)), tools=tuple(tools))


def _request(body: GenerationFields, **fields: Any) -> GenerationRequest:
    settings = body.settings
    return GenerationRequest(
        **fields,
        sampling=settings.sampling(),
        stop=settings.stops,
        max_tokens=settings.max_tokens,
        thinking=body.thinking,
        constraint=body.constraint,
        logprobs=body.wanted_logprobs,
    )


def _messages(messages: list[ChatMessage]) -> list[Message]:
    """Return the conversation; results are matched with calls by id, else by name, else in order."""
    turns: list[Message] = []
    open_calls: list[ToolCall] = []
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if message.images and message.role not in {"user", "tool"}:
            refuse(f"{where}.images", f"the model sees no images in {message.role!r} messages")
        if message.tool_calls and message.role != "assistant":
            raise InvalidArgument("Only assistant messages have tool calls.", param=f"{where}.tool_calls")
        if message.content is None and message.role != "assistant":
            raise InvalidArgument("The message has no content.", param=f"{where}.content")
        calls = tuple(
            ToolCall(call.id or f"call_{index}_{number}", call.function.name, json.dumps(call.function.arguments))
            for number, call in enumerate(message.tool_calls or ())
        )
        open_calls += calls
        answered = _answered(message, open_calls) if message.role == "tool" else None
        if answered in open_calls:
            open_calls.remove(answered)
        turns.append(
            replace(
                message_of(message.role, [*_images(message.images, f"{where}.images"), message.content or ""]),
                reasoning=message.thinking or "",
                tool_calls=calls,
                tool_call_id=answered.id if answered else message.tool_call_id,
                name=message.tool_name or message.name,
            )
        )
    return turns


def _images(images: list[str] | None, where: str) -> list[Image]:
    """Return the images of a message, which stand before its text; a form's attachments come as data URLs."""
    return [
        image_at(data, f"{where}.{at}") if data.startswith("data:") else image_in(data, None, f"{where}.{at}")
        for at, data in enumerate(images or ())
    ]


def _answered(message: ChatMessage, calls: list[ToolCall]) -> ToolCall | None:
    name = message.tool_name or message.name
    by_id = (call for call in calls if message.tool_call_id == call.id)
    by_name = (call for call in calls if name == call.name)
    return next(by_id, None) or next(by_name, None) or next(iter(calls), None)
