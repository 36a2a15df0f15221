"""What Ollama's endpoints share: options, names, errors, times (github.com/ollama/ollama/blob/main/docs/api.md)."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lib_mlx.config import KeepAlive
from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Constraint, SamplingParams
from lib_mlx.server.fields import Penalty, Probability, RepetitionPenalty, refuse_unless
from lib_mlx.server.http import WireModel

if TYPE_CHECKING:
    from lib_mlx.errors import LibMlxError

Think = bool | Literal["low", "medium", "high"]
_TAG = ":latest"


class Options(WireModel):
    """`options` of a request."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """As high as the engine takes it: Ollama has no bound."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    seed: int | None = None
    num_predict: Annotated[int, Field(ge=-2)] | None = None
    stop: list[Annotated[str, Field(min_length=1)]] | Annotated[str, Field(min_length=1)] | None = None
    repeat_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    """The context that is wanted at least; it is the model's."""
    num_keep: int | None = None
    """What to keep when the context overflows: nothing is ever cut here."""
    # How llama.cpp runs a model; answers do not depend on them.
    numa: bool | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    # Fields that are refused unless they ask for what happens anyway.
    repeat_last_n: int | None = None
    tfs_z: float | None = None
    typical_p: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    penalize_newline: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    embedding_only: bool | None = None

    def check(self) -> None:
        """Raise UnsupportedFeature for what cannot be honoured."""
        if self.repeat_penalty not in {None, 1.0}:
            refuse_unless("options.repeat_last_n", self.repeat_last_n, -1, why="the whole text counts")
        refuse_unless("options.mirostat", self.mirostat, 0, why="this server does not offer it")
        for param in ("tfs_z", "typical_p"):
            refuse_unless(f"options.{param}", getattr(self, param), 1.0, why="this server does not offer it")
        refuse_unless("options.penalize_newline", self.penalize_newline, True, why="all tokens are treated alike")
        for param in ("logits_all", "vocab_only", "embedding_only"):
            refuse_unless(f"options.{param}", getattr(self, param), False, why="this server does not offer it")

    def sampling(self) -> SamplingParams:
        """Return how tokens are chosen."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """What the answer ends before."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of the answer; None: up to the context's end."""
        return self.num_predict if self.num_predict is not None and self.num_predict > 0 else None


class ModelRequest(WireModel):
    """What every body has."""

    model: Annotated[str, Field(min_length=1)]
    options: Options | None = None
    keep_alive: KeepAlive | None = None

    @property
    def settings(self) -> Options:
        """The options, none if there are none."""
        return self.options or Options()


class GenerationFields(ModelRequest):
    """What both endpoints that generate take."""

    stream: bool | None = None
    """True unless it is false."""
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: Think | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def streamed(self) -> bool:
        """Whether to answer piece by piece."""
        return self.stream is not False

    @property
    def thinking(self) -> bool | None:
        """Whether the model may reason; None: as it was loaded."""
        return None if self.think is None else bool(self.think)

    @property
    def constraint(self) -> Constraint | None:
        """The form of the answer."""
        if not self.format:
            return None
        if self.format == "json":
            return Constraint("json_object", param="format")
        return Constraint("json_schema", self.format, "format")

    @property
    def wanted_logprobs(self) -> int | None:
        """How many rivals of each token to report; None: report nothing."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidArgument("'top_logprobs' needs 'logprobs': true.", hint="Add it.", param="top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None


def refuse_thinking(model: str) -> UnsupportedFeature:
    """Return the error of a model that is asked to reason and cannot."""
    return UnsupportedFeature(f"The model {model!r} does not support thinking.", hint="Leave it out.", param="think")


def bare_name(name: str) -> str:
    """Return a model's name without Ollama's default tag."""
    return name.removesuffix(_TAG)


def error_body(error: LibMlxError) -> dict[str, Any]:
    """Return `error` in Ollama's shape, with our code beside it; the field it is about stands in the text."""
    text = str(error)
    named = error.param is None or error.param in text
    return {"error": text if named else f"{error.param}: {text}", "code": error.code}


def timestamp(seconds: float | None = None) -> str:
    """Return a moment (now, if none is given) as RFC 3339."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    """Return a duration as Ollama counts it."""
    return math.ceil(seconds * 1e9)
