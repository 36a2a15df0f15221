"""The vocabulary of generation, shared by the engine, the server's dialects and the Python API.

A dialect (or the Python API) turns its input into a `GenerationRequest`; the engine answers with a stream of
`GenerationEvent`s that ends with exactly one `Finished` or `Failed`. Nothing here knows HTTP or MLX.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lib_mlx.errors import LibMlxError
    from lib_mlx.grounding.result import Grounding

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]
MediaKind = Literal["image", "audio", "video"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool by the model; `arguments` is JSON text, as the model meant it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """The least and the most pixels of an image as the model sees it; None: as the model has it."""

    least: int | None = None
    most: int | None = None

    def over(self, other: PixelBounds) -> PixelBounds:
        """Return these bounds, with those of `other` where these say nothing."""
        return PixelBounds(
            other.least if self.least is None else self.least, other.most if self.most is None else self.most
        )


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a message."""

    source: bytes | str = field(repr=False)
    """A file's content (PNG, JPEG, WebP, GIF or BMP); or, until a server has fetched it, its URL."""
    bounds: PixelBounds = PixelBounds()
    param: str = "images"
    """The field it came from, for errors."""

    @property
    def kind(self) -> MediaKind:
        """What chat templates call it."""
        return "image"


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording in a message."""

    source: bytes = field(repr=False)
    """A file's content (WAV, MP3, FLAC or Ogg Vorbis)."""
    format: str | None = None
    """What its sender says that it is: "wav", "mp3", "flac" or "ogg"; None: nothing."""
    param: str = "audio"
    """The field it came from, for errors."""

    @property
    def kind(self) -> MediaKind:
        """What chat templates call it."""
        return "audio"


@dataclass(frozen=True, slots=True)
class FrameBounds:
    """How many frames of a video a model sees; None: 2 a second, and 32 at most."""

    fps: float | None = None
    """So many a second, if that is not more than `most`."""
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """A film in a message; its sound is not heard."""

    source: bytes | str = field(repr=False)
    """A file's content (MP4, MOV, WebM, MKV or AVI); or, until a server has fetched it, its URL."""
    param: str = "videos"
    """The field it came from, for errors."""

    @property
    def kind(self) -> MediaKind:
        """What chat templates call it."""
        return "video"


Attachment: TypeAlias = "Image | Sound | Video"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, free of any dialect."""

    role: Role
    content: str = ""
    """Its text."""
    parts: tuple[str | Attachment, ...] = ()
    """All that it holds, in order, if that is more than text."""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is its JSON Schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False
    """Guarantee that arguments fit `parameters`."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form that the answer is guaranteed to have; reasoning before it stays free.

    `kind` is "json_schema" (`value`: the schema), "json_object" (any object), "regex" or "lark" (`value`: text, in
    llguidance's dialect: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
    """

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    value: Any = None
    param: str = "response_format"
    """The field it came from, for errors."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. None means: the checkpoint's own default, else the neutral value."""

    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    """0 is off."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    """Over prompt and output (Keskar et al. 2019, arXiv:1909.05858); 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted once from each token already in the output, as OpenAI defines it."""
    frequency_penalty: float = 0.0
    """Subtracted per occurrence in the output, as OpenAI defines it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    """The same seed, request and model give the same tokens, alone or in a batch."""


@dataclass(frozen=True, slots=True)
class GroundingOptions:
    """How a model that points at things (`lib_mlx.grounding`) answers."""

    free: bool = False
    """Leave the action to the model, which may point several times or not at all; else it is one click."""
    attention: bool = False
    """Tell the maps of attention, too."""
    points: int | None = None
    """Tell so many candidates at most."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Everything one generation depends on."""

    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    """Text or tokens to be continued as they are, instead of messages: no template, and all that comes is text."""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """"auto", "required" (at least one call), or the name of the function that must be called."""
    allowed_tools: frozenset[str] | None = None
    """The only tools that may be called, of those that are shown to the model; None: all."""
    parallel_tool_calls: bool = True
    """False: generation ends after the first tool call."""
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these; they are looked for in the answer's text, not in reasoning."""
    max_tokens: int | None = None
    """None: up to the context's end."""
    thinking: bool | None = None
    """Whether the template may open a reasoning block; None: as the model was loaded."""
    reasoning_budget: int | None = None
    """Reasoning is closed after so many tokens; None: the model closes it."""
    prefill: str = ""
    """Text the answer begins with already: the model goes on from it, without reasoning first."""
    constraint: Constraint | None = None
    """The form of the answer, if it is not tool calls: with forced ones it has no effect."""
    logprobs: int | None = None
    """Report each token of the answer with its log-probability and those of this many likeliest ones at its place."""
    pixel_bounds: PixelBounds = PixelBounds()
    """Of images that have none of their own."""
    frame_bounds: FrameBounds = FrameBounds()
    """Of videos."""
    cache_salt: str = ""
    """Prompts are reused only among requests with the same salt: others cannot learn from timing what was asked."""
    client: str = ""
    """Who asks: clients take turns, so that none waits for all that another has asked for."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the chat template."""
    grounding: GroundingOptions | None = None
    """For models that point at things; None: the defaults."""

    @property
    def attachments(self) -> list[Attachment]:
        """All that the conversation holds beside text, in order."""
        return [part for message in self.messages for part in message.parts if not isinstance(part, str)]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. `completion` includes `reasoning` and the end token."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations in seconds: waiting, prompt processing, generation, and submission to first token."""

    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    ttft: float = 0.0


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token that might have come, and how likely it was: the natural logarithm, after penalties and masks."""

    token: int
    bytes: bytes
    """Its text; not always whole characters."""
    logprob: float


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token that came, and the likeliest ones at its place, most likely first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer."""

    text: str
    tokens: tuple[SampledToken, ...] = ()
    """The tokens that made it, if their log-probabilities were asked for; a token's text may be split over deltas."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A tool call, or a further piece of the arguments of the call with the same `index`."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Grounded:
    """What an answer points at, and what of it is to be told."""

    grounding: Grounding
    options: GroundingOptions = GroundingOptions()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a generation that went well."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop: str | None = None
    """The stop sequence that ended the answer, if one did."""
    grounded: Grounded | None = None
    """Of a model that points at things."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a generation that did not: cancelled, or an error after it was admitted."""

    error: LibMlxError
    usage: Usage = Usage()


Delta = ReasoningDelta | TextDelta | ToolCallDelta
GenerationEvent = Delta | Finished | Failed
