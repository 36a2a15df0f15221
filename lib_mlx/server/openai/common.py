"""What the OpenAI endpoints share: errors, usage, common fields and the choice of tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lib_mlx.config import KeepAlive
from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import FrameBounds, PixelBounds, SamplingParams
from lib_mlx.server.fields import Penalty, Probability, RepetitionPenalty, Temperature, refuse_unless
from lib_mlx.server.http import WireModel
from lib_mlx.server.media import ProcessorOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lib_mlx.errors import LibMlxError
    from lib_mlx.generation import SampledToken, TokenLogprob, Tool, Usage

_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def as_list(value: Any) -> Any:
    """Return a string as a list of one, all else as it is."""
    return [value] if isinstance(value, str) else value


StopSequences = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4), BeforeValidator(as_list)]
"""A string or up to four of them."""
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class SamplingFields(WireModel):
    """What all endpoints that generate take, OpenAI's fields and ours."""

    model: str | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Probability | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    cache_salt: str | None = None
    profile: str | None = None
    keep_alive: KeepAlive | None = None
    """When to unload a further model afterwards; as Ollama has it."""
    user: str | None = None
    """Who asks: users take turns."""

    @property
    def caller(self) -> str | None:
        """Who asks, as far as is said."""
        return self.user


class MediaFields(WireModel):
    """What both conversation endpoints take that concerns images, beyond OpenAI's."""

    mm_processor_kwargs: ProcessorOptions | None = None

    @property
    def pixel_bounds(self) -> PixelBounds:
        """Of all images; raises InvalidArgument if they are none."""
        return self.mm_processor_kwargs.bounds() if self.mm_processor_kwargs else PixelBounds()

    @property
    def frame_bounds(self) -> FrameBounds:
        """Of all videos."""
        return self.mm_processor_kwargs.frames() if self.mm_processor_kwargs else FrameBounds()


class CommonFields(SamplingFields, MediaFields):
    """What both conversation endpoints take."""

    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    """OpenAI's newer name for `user`."""
    # Fields that describe the request or hint at caching: they change nothing here, as OpenAI documents them.
    metadata: Metadata | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # Fields that are refused unless they ask for what happens anyway.
    store: bool | None = None
    service_tier: str | None = None

    @property
    def caller(self) -> str | None:
        """Who asks, as far as is said."""
        return self.safety_identifier or self.user


def refuse_common(body: CommonFields, *, stores: bool = False) -> None:
    """Refuse what neither endpoint honours; `stores` tells whether this one keeps its answers."""
    if not stores:
        refuse_unless("store", body.store, False, why="answers are not stored")
    refuse_unless("service_tier", body.service_tier, "auto", "default", why="there is one tier")


def error_body(error: LibMlxError) -> dict[str, Any]:
    """Return `error` in OpenAI's shape."""
    kind = _ERROR_TYPES.get(error.http_status)
    if kind is None:
        kind = "server_error" if error.http_status >= 499 else "invalid_request_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def chat_usage(usage: Usage) -> dict[str, Any]:
    """Return token counts under Chat Completions' names, and under the Responses API's as the original package did."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
    }


def choose_tools(tools: Sequence[Tool], choice: Any) -> tuple[tuple[Tool, ...], str]:
    """Return the tools on offer and `GenerationRequest.tool_choice` for OpenAI's `tool_choice` of either endpoint.

    Raises:
        InvalidArgument: it names no tool of the request, or is not a choice at all.
    """
    if choice in (None, "auto", "required"):
        return _offered(tools, choice or "auto")
    if choice == "none":
        return (), "auto"
    wrong = InvalidArgument(
        "'tool_choice' is not understood.", hint="Use none, auto, required or a function.", param="tool_choice"
    )
    if not isinstance(choice, dict):
        raise wrong
    if choice.get("type") == "allowed_tools":
        mode, names = _allowance(choice)
        required = mode == "required"
        if not (required or mode == "auto") or not names <= {tool.name for tool in tools} or (required and not names):
            raise wrong
        return _offered(tools, str(mode))
    name = _function_name(choice)
    if name not in {tool.name for tool in tools}:
        raise wrong
    return tuple(tools), str(name)


def allowed_tools(choice: Any) -> frozenset[str] | None:
    """Return the names of the only tools that may be called, for a choice that `choose_tools` has accepted."""
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return None
    return frozenset(name for name in _allowance(choice)[1] if name is not None)


def _allowance(choice: Mapping[str, Any]) -> tuple[Any, set[str | None]]:
    """Return the mode and the names of a choice of allowed tools; None among them is no function."""
    allowed = choice.get("allowed_tools", choice)
    listed = allowed.get("tools") if isinstance(allowed, dict) else None
    names: set[str | None] = {_function_name(tool) for tool in listed} if isinstance(listed, list) else {None}
    return allowed.get("mode", "auto") if isinstance(allowed, dict) else None, names


def echoed_choice(choice: Any) -> Any:
    """Return a tool choice that `choose_tools` has accepted in the shape the Responses API gives it out in."""
    if not isinstance(choice, dict):
        return choice or "auto"
    names = allowed_tools(choice)
    if names is None:
        return {"type": "function", "name": _function_name(choice)}
    tools = [{"type": "function", "name": name} for name in sorted(names)]
    return {"type": "allowed_tools", "mode": _allowance(choice)[0], "tools": tools}


def _offered(tools: Sequence[Tool], choice: str) -> tuple[tuple[Tool, ...], str]:
    if choice == "required" and not tools:
        raise InvalidArgument("'tool_choice' requires a tool, but there is none.", param="tool_choice")
    return tuple(tools), choice


def _function_name(choice: Any) -> str | None:
    if not isinstance(choice, dict) or choice.get("type") != "function":
        return None
    name = choice.get("function", choice).get("name") if isinstance(choice.get("function", choice), dict) else None
    return name if isinstance(name, str) else None


def sampling(body: SamplingFields, bias: Mapping[str, float] | None = None) -> SamplingParams:
    """Return the sampling options of a request body, with `bias` by token id where the endpoint has it."""
    return SamplingParams(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=tuple((int(token), value) for token, value in (bias or {}).items()),
        seed=body.seed,
    )


def thinking(effort: str | None, switch: bool | None) -> bool | None:
    """Return whether to open a reasoning block: an explicit switch goes before the effort."""
    if switch is not None:
        return switch
    return None if effort is None else effort != "none"


def template_variables(effort: str | None, variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the chat template is given: some templates know how much to reason. The client's own go first."""
    return {**({} if effort is None else {"reasoning_effort": effort}), **(variables or {})}


def logprob_entry(token: SampledToken) -> dict[str, Any]:
    """Return a token of the answer with its log-probability and those of the likeliest ones at its place."""
    return {**_entry(token.chosen), "top_logprobs": [_entry(other) for other in token.top]}


def _entry(token: TokenLogprob) -> dict[str, Any]:
    text = token.bytes.decode("utf-8", "replace")
    # OpenAI's own stand-in for what has no probability: JSON knows no infinity.
    return {"token": text, "logprob": max(token.logprob, -9999.0), "bytes": list(token.bytes)}
