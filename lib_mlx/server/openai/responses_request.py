"""The bodies of `POST /v1/responses` and `/v1/responses/input_tokens` and what they mean for the engine.

Fields beyond OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `seed`, `thinking`, `chat_template_kwargs`,
`cache_salt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import GenerationRequest, Message, Tool
from lib_mlx.server.fields import FunctionName, constraint, refuse, refuse_unless
from lib_mlx.server.grounding import GroundingFields, to_options
from lib_mlx.server.http import WireModel
from lib_mlx.server.openai.common import (
    CommonFields,
    Effort,
    MediaFields,
    allowed_tools,
    choose_tools,
    refuse_common,
    sampling,
    template_variables,
    thinking,
)
from lib_mlx.server.openai.response_items import InputItem, to_messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lib_mlx.server.openai.response_items import Item

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"


class FunctionTool(WireModel):
    """A function the model may call; other kinds of tools are parsed to be refused by name."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    # Fields that are refused unless they ask for what happens anyway.
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    output_schema: Any = None


class TextFormat(WireModel):
    """The form of the answer; a schema is always enforced, strict or not."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(WireModel):
    """How the answer is written."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(WireModel):
    """How much to reason, and what is told of it."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None


class PromptFields(MediaFields):
    """What a prompt is made from."""

    model: str | None = None
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Fields that are refused unless they ask for what happens anyway.
    conversation: Any = None

    @property
    def effort(self) -> str | None:
        """How much to reason."""
        return self.reasoning.effort if self.reasoning else None

    @property
    def form(self) -> TextFormat | None:
        """The form of the answer."""
        return self.text.format if self.text else None


class InputTokensRequest(PromptFields):
    """The body of a request to count the tokens of a prompt."""

    personality: str | None = None


class StreamOptions(WireModel):
    """Options of a streamed response."""

    include_obfuscation: bool | None = None


class ResponsesRequest(PromptFields, CommonFields):
    """The body of a request to answer."""

    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    grounding: GroundingFields | None = None
    background: bool | None = None
    # Fields that are refused unless they ask for what happens anyway.
    max_tool_calls: int | None = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None
    prompt_cache_options: Any = None
    access_programs: Any = None
    image: Any = None

    @property
    def stores(self) -> bool:
        """Whether the response is kept."""
        return self.store is not False

    def includes(self, what: str) -> bool:
        """Whether the response is to include `what`."""
        return what in (self.include or ())

    @property
    def logprobs(self) -> int | None:
        """How many of the likeliest tokens to report at each place; None: no probabilities at all."""
        return self.top_logprobs or 0 if self.includes(LOGPROBS) or self.top_logprobs else None


def to_generation(body: ResponsesRequest, items: Sequence[Item]) -> GenerationRequest:
    """Return the engine's request for the conversation `items`.

    Raises:
        UnsupportedFeature: an option cannot be honoured.
        InvalidArgument: options contradict each other, or there is nothing to answer.
    """
    _refuse_unsupported(body)
    return GenerationRequest(
        **_prompt(body, items),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        sampling=sampling(body),
        max_tokens=body.max_output_tokens,
        cache_salt=body.cache_salt or "",
        logprobs=body.logprobs,
        constraint=constraint(_form(body.form), "text.format"),
        grounding=to_options(body.grounding),
    )


def to_prompt(body: InputTokensRequest, items: Sequence[Item]) -> GenerationRequest:
    """Return a request with the prompt of `body`, to be counted; raises like `to_generation`."""
    _refuse_unsupported_in_prompt(body)
    constraint(_form(body.form), "text.format")
    refuse_unless("personality", body.personality, why="this model has no styles of its own")
    return GenerationRequest(**{**_prompt(body, items), "tool_choice": "auto"})


def _prompt(body: PromptFields, items: Sequence[Item]) -> dict[str, Any]:
    """Return what a prompt depends on."""
    messages = [Message("system", body.instructions)] if body.instructions else []
    messages += to_messages(items, len(body.input) if isinstance(body.input, list) else int(body.input is not None))
    if not messages:
        raise InvalidArgument("The input is empty.", hint="Give a string or at least one item.", param="input")
    tools, tool_choice = choose_tools(_tools(body), body.tool_choice)
    return {
        "messages": tuple(messages),
        "tools": tools,
        "tool_choice": tool_choice,
        "allowed_tools": allowed_tools(body.tool_choice),
        "thinking": thinking(body.effort, body.thinking),
        "pixel_bounds": body.pixel_bounds,
        "frame_bounds": body.frame_bounds,
        "template_kwargs": template_variables(body.effort, body.chat_template_kwargs),
    }


def _refuse_unsupported(body: ResponsesRequest) -> None:
    refuse_common(body, stores=True)
    _refuse_unsupported_in_prompt(body)
    refuse_include(body.include)
    if body.background and not body.stores:
        raise InvalidArgument(
            "'background' needs 'store': true: the response is asked for later.", hint="Add it.", param="background"
        )
    if body.stream_options is not None:
        if not body.stream:
            raise InvalidArgument(
                "'stream_options' is only allowed with 'stream': true.", hint="Remove it.", param="stream_options"
            )
        refuse_obfuscation("stream_options.include_obfuscation", body.stream_options.include_obfuscation)
    refuse_unless(
        "max_tool_calls",
        body.max_tool_calls,
        why="it limits tools that run on the server, and there are none; parallel_tool_calls limits functions",
    )
    for param in ("prompt", "context_management", "moderation", "prompt_cache_options", "access_programs", "image"):
        refuse_unless(param, getattr(body, param), why="this server does not offer it")


def _refuse_unsupported_in_prompt(body: PromptFields) -> None:
    refuse_unless("conversation", body.conversation, why="use previous_response_id")
    if body.text is not None:
        refuse_unless("text.verbosity", body.text.verbosity, "medium", why="this model has no such control")
    if body.reasoning is not None:
        options = body.reasoning
        refuse_unless("reasoning.summary", options.summary, "auto", why="reasoning is given whole")
        refuse_unless("reasoning.generate_summary", options.generate_summary, why="it is deprecated")
        refuse_unless(
            "reasoning.context", options.context, "auto", "current_turn", why="models read that of the current turn"
        )
        refuse_unless("reasoning.mode", options.mode, "standard", why="there is one mode")


def refuse_include(include: Sequence[str] | None) -> None:
    """Refuse to include what no response has."""
    for what in include or ():
        refuse_unless("include", what, LOGPROBS, ENCRYPTED, why=f"there is no {what!r} here")


def refuse_obfuscation(param: str, value: bool | None) -> None:
    """Refuse to pad events."""
    refuse_unless(param, value, False, why="nothing is obfuscated")


def _tools(body: PromptFields) -> list[Tool]:
    tools = []
    for index, tool in enumerate(body.tools or ()):
        where = f"tools.{index}"
        if tool.type != "function":
            refuse(f"{where}.type", f"{tool.type!r} tools do not exist here", hint="Use functions.")
        if tool.name is None:
            raise InvalidArgument("A function needs a name.", param=f"{where}.name")
        refuse_unless(f"{where}.allowed_callers", tool.allowed_callers, ["direct"], why="only the model calls it")
        refuse_unless(f"{where}.defer_loading", tool.defer_loading, False, why="all tools are shown to the model")
        refuse_unless(f"{where}.output_schema", tool.output_schema, why="the model is not told what comes back")
        parameters = tool.parameters or {"type": "object"}
        tools.append(Tool(tool.name, tool.description or "", parameters, bool(tool.strict)))
    return tools


def _form(form: TextFormat | None) -> dict[str, Any] | None:
    if form is None:
        return None
    wanted = {"type": form.type, "schema": form.schema_}
    if form.type == "json_schema" and form.schema_ is not None and form.name is None:
        raise InvalidArgument("A form needs a name.", param="text.format.name")
    return wanted
