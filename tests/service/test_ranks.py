"""A model that is divided among processes of this machine over MLX's ring: real inference, real HTTP."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import openai
import pytest

import lib_mlx
from lib_mlx.generation import SamplingParams
from tests.checkpoints.tiny import build_tiny
from tests.service.divided import PROMPTS, Served, ask, quantised, start, stop, stream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_answers_are_those_of_one_process(served: Served, alone: Callable[..., str]) -> None:
    """Greedy, seeded and streamed answers are those of the undivided model, also with what is kept of past prompts."""
    for prompt in PROMPTS:
        expected = alone(prompt)
        assert len(set(expected)) > 3
        assert ask(served.client, prompt) == expected
        chunks = stream(served.client, prompt)  # its prompt is in the prefix cache
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    seeded = {"temperature": 1.0, "seed": 7}
    assert ask(served.client, PROMPTS[0], **seeded) == alone(PROMPTS[0], **seeded)


def test_requests_run_in_one_batch(served: Served, alone: Callable[..., str]) -> None:
    """Requests of different lengths at the same time get the answers that each gets alone."""
    prompts = [f"{number} {prompt}" for number in range(2) for prompt in PROMPTS]
    limits = [8 + 5 * (number % 4) for number in range(len(prompts))]
    expected = [alone(prompt, max_tokens=limit) for prompt, limit in zip(prompts, limits, strict=True)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = pool.map(
            lambda item: ask(served.client, item[0], max_tokens=item[1]), zip(prompts, limits, strict=True)
        )
    assert list(answers) == expected


def test_cancelled_in_the_middle(served: Served, alone: Callable[..., str]) -> None:
    """A client that goes while others run takes nothing with it, and the next request is answered rightly."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, served.client, PROMPTS[1], max_tokens=60)
        chunks = stream(served.client, PROMPTS[0], max_tokens=4000)
        for _ in range(5):
            next(chunks)
        chunks.close()
        assert other.result() == alone(PROMPTS[1], max_tokens=60)
    assert ask(served.client, PROMPTS[2]) == alone(PROMPTS[2])


def test_forms_are_kept(served: Served, alone: Callable[..., str]) -> None:
    """The form of an answer and its limits are kept: what chooses tokens runs on rank 0 alone."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"name": "a", "strict": True, "schema": {**schema, "additionalProperties": False}}
    options = {"response_format": {"type": "json_schema", "json_schema": form}, "seed": 3, "temperature": 1.0}
    answer = ask(served.client, PROMPTS[0], **options)
    assert answer == alone(PROMPTS[0], **options)
    assert not answer.strip() or answer.lstrip().startswith("{")
    stopped = ask(served.client, PROMPTS[0], stop=alone(PROMPTS[0])[4:6])
    assert stopped == alone(PROMPTS[0]).partition(alone(PROMPTS[0])[4:6])[0]


def test_quantised_weights(tmp_path: Path) -> None:
    """Weights that are quantised are divided by their groups, and give the tokens that they give undivided."""
    model = quantised(build_tiny(tmp_path / "wide", heads=8, kv_heads=4, spread=0.3), tmp_path / "tiny")
    served = start(tmp_path, model, 2, "--port", "0")
    with lib_mlx.load_model(model, cpu_weights="float32") as alone:
        said = [
            alone.generate(prompt, max_tokens=12, sampling=SamplingParams(temperature=0)).text for prompt in PROMPTS
        ]
    assert [ask(served.client, prompt) for prompt in PROMPTS] == said
    stop(served)


def test_what_cannot_be_had(served: Served) -> None:
    """Embeddings and other models are refused by name."""
    with pytest.raises(openai.BadRequestError, match="several hosts makes no embeddings"):
        served.client.embeddings.create(model="tiny", input="x")
    with pytest.raises(openai.NotFoundError, match="'other'"):
        served.client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])


def test_idle_ranks_rest(served: Served) -> None:
    """Nobody computes while there is nothing to do: neither the ranks nor MLX's launcher."""
    processes = served.everyone()
    time.sleep(0.3)
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    time.sleep(1.0)
    assert sum(sum(process.cpu_times()[:2]) for process in processes) - before < 0.2
