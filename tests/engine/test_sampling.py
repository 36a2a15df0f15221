"""Samplers and processors against a plain reading of their definitions."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lib_mlx.config import GenerationDefaults
from lib_mlx.engine.sampling import make_processors, make_sampler, resolve_sampling, sampling_defaults
from lib_mlx.generation import SamplingParams

LOGITS = [2.0, -1.0, 0.5, 1.5, -0.5, 0.0]
PROMPT = [0, 1]
OUTPUT = [2, 3, 3]


def processed(**params: Any) -> list[float]:
    """The logits after a request's processors, with two tokens of prompt and three of output."""
    resolved = resolve_sampling(SamplingParams(**params), {}, len(LOGITS))
    logits = mx.array([LOGITS])
    for process in make_processors(resolved, len(PROMPT)):
        logits = process(mx.array(PROMPT + OUTPUT), logits)
    values: list[float] = logits.tolist()[0]
    return values


def test_presence_and_frequency_count_the_output_alone() -> None:
    """OpenAI's penalties: once per token, and once per occurrence, of the answer; the prompt does not count."""
    counts = [OUTPUT.count(token) for token in range(len(LOGITS))]
    assert processed(presence_penalty=0.5) == pytest.approx(
        [x - 0.5 * (n > 0) for x, n in zip(LOGITS, counts, strict=True)]
    )
    assert processed(frequency_penalty=0.5) == pytest.approx([x - 0.5 * n for x, n in zip(LOGITS, counts, strict=True)])


def test_repetition_counts_the_prompt_too() -> None:
    """Positive logits of seen tokens are divided, negative ones multiplied."""
    seen = set(PROMPT + OUTPUT)
    expected = [(x / 2 if x > 0 else x * 2) if token in seen else x for token, x in enumerate(LOGITS)]
    assert processed(repetition_penalty=2.0) == pytest.approx(expected)


def test_biases_are_added() -> None:
    """A bias goes to its token alone."""
    assert processed(logit_bias=((4, 3.0),)) == pytest.approx([*LOGITS[:4], LOGITS[4] + 3, LOGITS[5]])


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {0, 3}),
        ({"top_p": 0.5}, {0, 3}),
        ({"min_p": 0.3}, {0, 3}),
        ({"top_p": 0.0}, {0}),
        ({"top_k": 1}, {0}),
        ({"temperature": 0.0}, {0}),
        ({}, set(range(6))),
    ],
)
def test_filters(params: dict[str, Any], allowed: set[int]) -> None:
    """Only the tokens a filter leaves are ever drawn, and all of them are."""
    sampler = make_sampler(resolve_sampling(SamplingParams(**({"temperature": 1.0, "seed": 1} | params)), {}, 6))
    logprobs = mx.array([LOGITS]) - mx.logsumexp(mx.array([LOGITS]))
    assert {int(sampler(logprobs).item()) for _ in range(300)} == allowed


def test_temperature_gives_the_softmax() -> None:
    """Drawn frequencies follow exp(logit / temperature)."""
    sampler = make_sampler(resolve_sampling(SamplingParams(temperature=2.0, seed=3), {}, 6))
    logprobs = mx.array([LOGITS]) - mx.logsumexp(mx.array([LOGITS]))
    drawn = np.bincount([int(sampler(logprobs).item()) for _ in range(4000)], minlength=6) / 4000
    weights = np.exp(np.array(LOGITS) / 2)
    assert drawn == pytest.approx(weights / weights.sum(), abs=0.03)


def test_the_checkpoints_defaults() -> None:
    """generation_config.json fills in what a request leaves out, unless it says not to sample."""
    own = {"temperature": 0.3, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.1}
    defaults = sampling_defaults(own, GenerationDefaults())
    resolved = resolve_sampling(SamplingParams(top_p=0.5), defaults, 100)
    assert (resolved.temperature, resolved.top_k, resolved.top_p, resolved.repetition_penalty) == (0.3, 5, 0.5, 1.1)
    greedy = sampling_defaults({**own, "do_sample": False}, GenerationDefaults())
    plain = resolve_sampling(SamplingParams(), greedy, 100)
    assert (plain.temperature, plain.top_k, plain.top_p, plain.repetition_penalty) == (1.0, 0, 1.0, 1.0)


def test_configured_defaults_go_before_the_checkpoints() -> None:
    """What the configuration says counts, be it zero; a request goes before both."""
    defaults = sampling_defaults({"temperature": 0.3, "top_k": 5}, GenerationDefaults(temperature=0.0, min_p=0.1))
    resolved = resolve_sampling(SamplingParams(), defaults, 100)
    assert (resolved.temperature, resolved.top_k, resolved.min_p) == (0.0, 5, 0.1)
    assert resolve_sampling(SamplingParams(temperature=2.0), defaults, 100).temperature == 2.0


def test_a_top_k_of_the_whole_vocabulary_is_no_filter() -> None:
    """mlx-lm would raise for it."""
    assert resolve_sampling(SamplingParams(top_k=6), {}, 6).top_k == 0
    assert math.isfinite(resolve_sampling(SamplingParams(top_k=5), {}, 6).temperature)
