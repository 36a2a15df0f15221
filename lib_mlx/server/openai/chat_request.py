"""The body of `POST /v1/chat/completions` and what it means for the engine.

Fields beyond OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `thinking`, `chat_template_kwargs`,
`cache_salt`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import GenerationRequest, Tool, ToolCall
from lib_mlx.server.fields import Bias, FunctionName, constraint, refuse, refuse_unless
from lib_mlx.server.grounding import GroundingFields, to_options
from lib_mlx.server.http import WireModel
from lib_mlx.server.media import InputAudio, image_at, message_of, sound_in, video_at
from lib_mlx.server.openai.common import (
    CommonFields,
    Effort,
    StopSequences,
    allowed_tools,
    choose_tools,
    refuse_common,
    sampling,
    template_variables,
    thinking,
)

if TYPE_CHECKING:
    from lib_mlx.generation import Attachment, Message, Role


class ImageUrl(WireModel):
    """An image, by URL or in one."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class VideoUrl(WireModel):
    """A video, by URL or in one, as vLLM has it."""

    url: str


class ContentPart(WireModel):
    """One part of a message's content. Those that are not understood are parsed to be refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None
    video_url: VideoUrl | None = None
    file: Any = None
    prompt_cache_breakpoint: Any = None


class FunctionCall(WireModel):
    """The function of a tool call in a conversation's history."""

    name: FunctionName
    arguments: str
    parsed_arguments: Any = None
    """Added by OpenAI's own client when it parses."""


class HistoryToolCall(WireModel):
    """A tool call of an earlier assistant message."""

    id: str
    type: Literal["function"]
    function: FunctionCall
    index: int | None = None


class ChatMessage(WireModel):
    """One message; which fields may be set depends on the role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[HistoryToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    parsed: Any = None
    """Added by OpenAI's own client when it parses."""
    audio: None = None
    function_call: None = None


class FunctionDefinition(WireModel):
    """A function the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(WireModel):
    """A tool; only functions exist."""

    type: Literal["function"]
    function: FunctionDefinition


class JsonSchema(WireModel):
    """The schema of `response_format`; always enforced, strict or not."""

    name: FunctionName
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(WireModel):
    """The form of the answer."""

    type: str
    json_schema: JsonSchema | None = None


class StreamOptions(WireModel):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(CommonFields):
    """The whole body."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: StopSequences | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Bias] | None = None
    tools: list[ToolDefinition] | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    grounding: GroundingFields | None = None
    # Fields that are refused unless they ask for what happens anyway.
    modalities: list[str] | None = None
    verbosity: str | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


def to_generation(body: ChatRequest) -> GenerationRequest:
    """Return the engine's request.

    Raises:
        UnsupportedFeature: an option cannot be honoured.
        InvalidArgument: fields contradict each other.
    """
    _refuse_unsupported(body)
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise InvalidArgument(
            "'max_tokens' and 'max_completion_tokens' contradict each other.",
            hint="Give one of them.",
            param="max_completion_tokens",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidArgument("'top_logprobs' needs 'logprobs': true.", hint="Add it.", param="top_logprobs")
    tools, tool_choice = choose_tools([_tool(tool.function) for tool in body.tools or ()], body.tool_choice)
    return GenerationRequest(
        messages=tuple(_message(message, f"messages.{index}") for index, message in enumerate(body.messages)),
        tools=tools,
        tool_choice=tool_choice,
        allowed_tools=allowed_tools(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        sampling=sampling(body, body.logit_bias),
        stop=tuple(body.stop or ()),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        thinking=thinking(body.reasoning_effort, body.thinking),
        template_kwargs=template_variables(body.reasoning_effort, body.chat_template_kwargs),
        pixel_bounds=body.pixel_bounds,
        frame_bounds=body.frame_bounds,
        cache_salt=body.cache_salt or "",
        logprobs=body.top_logprobs or 0 if body.logprobs else None,
        constraint=constraint(_form(body.response_format), "response_format"),
        grounding=to_options(body.grounding),
    )


def _refuse_unsupported(body: ChatRequest) -> None:
    refuse_common(body)
    refuse_unless("modalities", body.modalities, ["text"], why="this model writes text")
    refuse_unless("verbosity", body.verbosity, "medium", why="this model has no such control")
    if body.stream_options is not None and not body.stream:
        raise InvalidArgument(
            "'stream_options' is only allowed with 'stream': true.", hint="Remove it.", param="stream_options"
        )
    for param in ("audio", "prediction", "web_search_options", "functions", "function_call"):
        refuse_unless(param, getattr(body, param), why="this server does not offer it")


def _tool(function: FunctionDefinition) -> Tool:
    return Tool(
        function.name, function.description or "", function.parameters or {"type": "object"}, bool(function.strict)
    )


def _form(response_format: ResponseFormat | None) -> dict[str, Any] | None:
    if response_format is None:
        return None
    schema = response_format.json_schema
    return {"type": response_format.type, "schema": schema.schema_ if schema else None}


def _message(message: ChatMessage, where: str) -> Message:
    role: Role = "system" if message.role == "developer" else message.role
    if message.tool_calls and role != "assistant":
        raise InvalidArgument("Only assistant messages have tool calls.", param=f"{where}.tool_calls")
    if role == "tool" and not message.tool_call_id:
        raise InvalidArgument("A tool message needs the id of the call it answers.", param=f"{where}.tool_call_id")
    if message.content is None and role != "assistant":
        raise InvalidArgument("The message has no content.", param=f"{where}.content")
    return replace(
        message_of(role, _parts(message, where)),
        reasoning=message.reasoning_content or message.reasoning or "",
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _parts(message: ChatMessage, where: str) -> list[str | Attachment]:
    """Return what a message holds, in order."""
    if message.content is None or isinstance(message.content, str):
        return [message.content or ""]
    return [_part(part, message.role, f"{where}.content.{index}") for index, part in enumerate(message.content)]


def _part(part: ContentPart, role: str, where: str) -> str | Attachment:
    if part.type in {"image_url", "input_audio", "video_url", "input_video"}:
        if role not in {"user", "tool"}:
            refuse(where, f"the model takes text alone in {role!r} messages", hint="Put it into a user's message.")
        return _attachment(part, where)
    if part.type not in {"text", "refusal"}:
        refuse(where, f"models here read text, images, sounds and videos, not {part.type!r}", hint="Send those.")
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidArgument("The part has no text.", param=f"{where}.text")
    return text


def _attachment(part: ContentPart, where: str) -> Attachment:
    if part.type == "input_audio":
        if part.input_audio is None:
            raise InvalidArgument("The part has no sound.", param=f"{where}.input_audio")
        return sound_in(part.input_audio, f"{where}.input_audio")
    if part.type in {"video_url", "input_video"}:
        if part.video_url is None:
            raise InvalidArgument("The part has no video.", param=f"{where}.video_url")
        return video_at(part.video_url.url, f"{where}.video_url")
    if part.image_url is None:
        raise InvalidArgument("The part has no image.", param=f"{where}.image_url")
    return image_at(part.image_url.url, f"{where}.image_url", part.image_url.detail)
