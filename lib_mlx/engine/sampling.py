"""How the next token is chosen: samplers and logits processors of one request. Engine thread only.

A sampler takes log-probabilities of shape (rows, vocabulary) and returns token ids of shape (rows,); a
processor takes the tokens so far and logits of shape (1, vocabulary) and returns logits.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lib_mlx.errors import InvalidArgument
from lib_mlx.models.upstream import apply_min_p, apply_top_k, apply_top_p, greedy_sampler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lib_mlx.config import GenerationDefaults
    from lib_mlx.generation import SamplingParams

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]

_COLDEST = 1e-4  # below it the scaled logits overflow float32; the answer is the greedy one
_STRIDE = 0x9E3779B97F4A7C15  # between the keys of neighbouring tokens; odd, and so without repetition
_RANGES = (
    ("temperature", 0, 1000),
    ("top_p", 0, 1),
    ("top_k", 0, 1 << 31),
    ("min_p", 0, 1),
    ("repetition_penalty", 1e-3, 1000),
    ("presence_penalty", -1000, 1000),
    ("frequency_penalty", -1000, 1000),
)

GREEDY: Sampler = greedy_sampler
"""The one sampler of all greedy requests: rows that share a sampler are sampled in one call."""


@dataclass(frozen=True)
class ResolvedSampling:
    """`SamplingParams` with every default filled in and every value checked against the model."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    seed: int


def sampling_defaults(generation_config: Mapping[str, Any], configured: GenerationDefaults) -> dict[str, Any]:
    """Return what a request gets that leaves it out: as `configured`, else by the checkpoint's generation_config.json.

    The latter counts for nothing where it says not to sample.
    """
    own = generation_config if generation_config.get("do_sample", True) else {}
    return {**own, **configured.model_dump(exclude_none=True)}


def resolve_sampling(params: SamplingParams, defaults: Mapping[str, Any], vocab_size: int) -> ResolvedSampling:
    """Fill in `defaults`, then the neutral values. Any thread.

    Raises:
        InvalidArgument: a value is out of range, or a token id outside the vocabulary, where MLX would write out of
            bounds.
    """
    _check_ranges(params)
    for token, _ in params.logit_bias:
        if not 0 <= token < vocab_size:
            raise InvalidArgument(
                f"logit_bias names the token {token}; this model has tokens 0 to {vocab_size - 1}.",
                hint="Use token ids of this model's own tokenizer.",
                param="logit_bias",
            )

    def pick(name: str, neutral: float) -> float:
        given = getattr(params, name)
        default = defaults.get(name)
        usable = isinstance(default, (int, float)) and not isinstance(default, bool)
        return float(given if given is not None else default if usable and default is not None else neutral)

    top_k, temperature = int(pick("top_k", 0)), pick("temperature", 1.0)
    return ResolvedSampling(
        temperature=temperature if temperature >= _COLDEST else 0.0,
        top_p=pick("top_p", 1.0),
        top_k=top_k if top_k < vocab_size else 0,  # every token is among the top `vocab_size`
        min_p=pick("min_p", 0.0),
        repetition_penalty=pick("repetition_penalty", 1.0),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        seed=secrets.randbits(63) if params.seed is None else params.seed % (1 << 64),
    )


def _check_ranges(params: SamplingParams) -> None:
    for name, low, high in _RANGES:
        value = getattr(params, name)
        if value is not None and not low <= value <= high:  # false for NaN too
            raise InvalidArgument(
                f"{name} is {value}; it must be from {low:g} to {high:g}.",
                hint="Leave it out for the default.",
                param=name,
            )
    if not all(math.isfinite(bias) for _, bias in params.logit_bias):
        raise InvalidArgument("logit_bias holds a value that is not finite.", param="logit_bias")


def make_sampler(params: ResolvedSampling, made: int = 0) -> Sampler:
    """Return the sampler of one request that has `made` tokens already; all greedy requests share one.

    The order of the filters is mlx-lm's. The random numbers of a token depend on the seed and its place alone: what
    its neighbours in the batch do cannot change it, nor an interruption.
    """
    if params.temperature == 0 or params.top_k == 1 or params.top_p == 0:
        return GREEDY
    filters: list[Sampler] = []
    if params.top_p < 1:
        filters.append(lambda logprobs: apply_top_p(logprobs, params.top_p))
    if params.min_p > 0:
        filters.append(lambda logprobs: apply_min_p(logprobs, params.min_p))
    if params.top_k > 0:
        filters.append(lambda logprobs: apply_top_k(logprobs, params.top_k))
    scale = 1 / params.temperature
    place = made

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal place
        for narrow in filters:
            logprobs = narrow(logprobs)
        key = mx.random.key((params.seed + _STRIDE * place) % (1 << 64))
        place += 1
        return mx.random.categorical(logprobs * scale, key=key)

    return sample


def make_processors(params: ResolvedSampling, prompt_length: int) -> list[Processor]:
    """Return the logits processors of one request with `prompt_length` tokens of prompt."""
    processors: list[Processor] = []
    if params.repetition_penalty != 1:
        processors.append(lambda tokens, logits: _repetition(tokens, logits, params.repetition_penalty))
    presence, frequency = params.presence_penalty, params.frequency_penalty
    if presence or frequency:
        processors.append(lambda tokens, logits: _occurrence(tokens[prompt_length:], logits, presence, frequency))
    if params.logit_bias:
        ids = mx.array([token for token, _ in params.logit_bias])
        values = mx.array([value for _, value in params.logit_bias])
        processors.append(lambda _, logits: logits.at[:, ids].add(values.astype(logits.dtype)))
    return processors


def _repetition(tokens: mx.array, logits: mx.array, penalty: float) -> mx.array:
    seen = logits[:, tokens]
    logits[:, tokens] = mx.where(seen < 0, seen * penalty, seen / penalty)
    return logits


def _occurrence(output: mx.array, logits: mx.array, presence: float, frequency: float) -> mx.array:
    """Apply OpenAI's penalties: `presence` once per token in `output`, `frequency` per occurrence."""
    if output.size == 0:
        return logits
    counts = mx.zeros((logits.shape[-1],), logits.dtype).at[output].add(mx.array(1, logits.dtype))
    return logits - frequency * counts - presence * (counts > 0)
