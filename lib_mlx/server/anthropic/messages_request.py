"""The bodies of `POST /v1/messages` and `/v1/messages/count_tokens` and what they mean for the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import Constraint, GenerationRequest, Message, SamplingParams, Tool
from lib_mlx.server.anthropic.blocks import CacheControl, InputMessage, TextOrOther
from lib_mlx.server.anthropic.conversation import read_conversation, system_text
from lib_mlx.server.fields import FunctionName, Probability, refuse, refuse_unless
from lib_mlx.server.http import WireModel

_LEAST_BUDGET = 1024
_MAX_STOPS = 64

StopSequence = Annotated[str, Field(min_length=1, max_length=256)]


class CustomTool(WireModel):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None
    """A hint at how to cut the input into pieces, which joined are the same."""
    # Fields that are refused unless they ask for what happens anyway.
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    input_examples: list[Any] | None = None


class OtherTool(WireModel):
    """A tool that Anthropic runs or defines; parsed to be refused by name."""

    model_config = ConfigDict(extra="allow")

    type: str


def _kind_of_tool(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "CustomTool" if kind is None or kind == "custom" else "OtherTool"


AnyTool = Annotated[
    Annotated[CustomTool, Tag("CustomTool")] | Annotated[OtherTool, Tag("OtherTool")], Discriminator(_kind_of_tool)
]


class ToolChoice(WireModel):
    """Which tools must be called; which fields may be set depends on `type`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingOptions(WireModel):
    """Whether to reason, and how long; which fields may be set depends on `type`."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=_LEAST_BUDGET)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(WireModel):
    """The form of the answer, always enforced."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(WireModel):
    """How to answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(WireModel):
    """Who asks: users take turns."""

    user_id: str | None = None


class CountTokensRequest(WireModel):
    """The body of `/v1/messages/count_tokens`: all that makes a prompt."""

    model: str
    messages: Annotated[list[InputMessage], Field(min_length=1)]
    system: str | list[TextOrOther] | None = None
    tools: list[AnyTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingOptions | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The name that `output_config.format` had before."""
    cache_control: CacheControl | None = None
    speed: Literal["standard", "fast"] | None = None


class MessagesRequest(CountTokensRequest):
    """The body of `/v1/messages`."""

    max_tokens: Annotated[int, Field(ge=0)]
    """0: process the prompt, so that it is cached, and say nothing."""
    stream: bool | None = None
    stop_sequences: Annotated[list[StopSequence], Field(max_length=_MAX_STOPS)] | None = None
    temperature: Probability | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    # Fields that are refused unless they ask for what happens anyway.
    container: Any = None
    diagnostics: Any = None
    inference_geo: str | None = None

    @property
    def caller(self) -> str | None:
        """Who asks, as far as is said."""
        return self.metadata.user_id if self.metadata else None

    @property
    def omits_thinking(self) -> bool:
        """Whether the text of reasoning is not shown."""
        return self.thinking is not None and self.thinking.display == "omitted"


def to_generation(body: MessagesRequest) -> GenerationRequest:
    """Return the engine's request.

    Raises:
        UnsupportedFeature: an option cannot be honoured.
        InvalidArgument: fields contradict each other.
    """
    refuse_unless("container", body.container, why="there are no containers here")
    refuse_unless("diagnostics", body.diagnostics, why="requests are not kept to be compared")
    refuse_unless("inference_geo", body.inference_geo, why="the model runs on this machine")
    budget = body.thinking.budget_tokens if body.thinking else None
    if budget is not None and budget >= body.max_tokens:
        raise InvalidArgument(
            "'max_tokens' must be greater than 'thinking.budget_tokens'.", param="thinking.budget_tokens"
        )
    if body.max_tokens == 0:
        _refuse_saying_nothing(body)
    return replace(
        to_prompt(body),
        max_tokens=max(body.max_tokens, 1),
        stop=tuple(body.stop_sequences or ()),
        sampling=SamplingParams(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
    )


def to_prompt(body: CountTokensRequest) -> GenerationRequest:
    """Return what decides about the prompt; raises likewise."""
    refuse_unless("speed", body.speed, "standard", why="there is one speed")
    system = system_text(body.system)
    messages, prefill = read_conversation(body.messages)
    thinking, budget = _thinking(body.thinking)
    tools, tool_choice = _choose_tools(body)
    return GenerationRequest(
        messages=(*([Message("system", system)] if system else []), *messages),
        prefill=prefill,
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=not (body.tool_choice and body.tool_choice.disable_parallel_tool_use),
        thinking=thinking,
        reasoning_budget=budget,
        constraint=_constraint(body),
    )


def _refuse_saying_nothing(body: MessagesRequest) -> None:
    """Refuse what contradicts an answer without a token."""
    forced = body.tool_choice is not None and body.tool_choice.type in {"any", "tool"}
    for param, asked in (("stream", body.stream), ("tool_choice", forced), ("output_config.format", _form(body))):
        if asked:
            raise InvalidArgument(f"{param!r} needs an answer, but 'max_tokens' is 0.", param=param)


def _thinking(options: ThinkingOptions | None) -> tuple[bool | None, int | None]:
    """Return whether to reason (None: as the model was loaded), and how many tokens at most."""
    if options is None:
        return None, None
    enabled = options.type == "enabled"
    if enabled and options.budget_tokens is None:
        raise InvalidArgument("The field 'thinking.budget_tokens' is required.", param="thinking.budget_tokens")
    if options.budget_tokens is not None and not enabled:
        raise InvalidArgument(f"{options.type!r} thinking has no budget.", param="thinking.budget_tokens")
    if options.type == "between_tools":
        refuse("thinking.type", "text between tool calls is not told apart", "Use enabled, adaptive or disabled.")
    if options.type == "disabled" and options.display is not None:
        raise InvalidArgument("Disabled thinking is not displayed.", param="thinking.display")
    return options.type != "disabled", options.budget_tokens


def _form(body: CountTokensRequest) -> OutputFormat | None:
    return (body.output_config.format if body.output_config else None) or body.output_format


def _constraint(body: CountTokensRequest) -> Constraint | None:
    config = body.output_config or OutputConfig()
    # "high" is what leaving it out means.
    refuse_unless("output_config.effort", config.effort, "high", why="this model has no such control")
    if config.format and body.output_format:
        raise InvalidArgument(
            "'output_format' and 'output_config.format' are the same.", hint="Give the latter.", param="output_format"
        )
    form = _form(body)
    param = "output_format" if body.output_format else "output_config.format"
    return Constraint("json_schema", form.schema_, param) if form else None


def _choose_tools(body: CountTokensRequest) -> tuple[tuple[Tool, ...], str]:
    """Return the tools on offer and `GenerationRequest.tool_choice`."""
    tools = tuple(_tool(tool, f"tools.{at}") for at, tool in enumerate(body.tools or ()))
    names = [tool.name for tool in tools]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise InvalidArgument(f"There are two tools {name!r}.", param=f"tools.{at}.name")
    choice = body.tool_choice or ToolChoice(type="auto")
    if (choice.name is None) == (choice.type == "tool"):
        raise InvalidArgument("'tool_choice.name' belongs to the type 'tool'.", param="tool_choice.name")
    if choice.type == "none":
        return (), "auto"
    if choice.type == "auto":
        return tools, "auto"
    if not tools:
        raise InvalidArgument("'tool_choice' requires a tool, but there is none.", param="tool_choice")
    if choice.name is not None and choice.name not in names:
        raise InvalidArgument(f"There is no tool {choice.name!r}.", param="tool_choice.name")
    return tools, choice.name or "required"


def _tool(tool: CustomTool | OtherTool, where: str) -> Tool:
    if isinstance(tool, OtherTool):
        refuse(f"{where}.type", f"{tool.type!r} tools do not exist here", "Define it with an input_schema.")
    refuse_unless(
        f"{where}.allowed_callers", tool.allowed_callers, ["direct"], why="only the model itself calls tools here"
    )
    refuse_unless(f"{where}.defer_loading", tool.defer_loading, False, why="there is no search for tools here")
    refuse_unless(f"{where}.input_examples", tool.input_examples, [], why="chat templates have no place for them")
    if tool.input_schema.get("type", "object") != "object":
        raise InvalidArgument("The input of a tool is an object.", param=f"{where}.input_schema.type")
    return Tool(tool.name, tool.description or "", tool.input_schema, bool(tool.strict))
