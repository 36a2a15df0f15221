"""A model whose layers are dealt out to processes of this machine: the answers, and what becomes of a lost rank."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import psutil
import pytest

import lib_mlx
from lib_mlx.generation import SamplingParams
from lib_mlx.models.checkpoint import inspect
from tests.checkpoints.mixture import build_mixture
from tests.checkpoints.tiny import build_tiny
from tests.service.divided import PROMPTS, Served, ask, begin, start, stop, stream, write_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen2 of five layers."""
    path = tmp_path_factory.mktemp("layers") / "tiny"
    return build_tiny(path, spread=0.3, model_type="qwen2", layers=5)


def answers(checkpoint: Path) -> dict[str, str]:
    """What a model says in one process, by prompt."""
    options: dict[str, Any] = {"max_tokens": 12, "sampling": SamplingParams(temperature=0)}
    with lib_mlx.load_model(checkpoint, cpu_weights="float32") as alone:
        return {prompt: alone.generate(prompt, **options).text for prompt in PROMPTS}


@pytest.fixture(scope="module")
def said(checkpoint: Path) -> dict[str, str]:
    """What it says in one process."""
    return answers(checkpoint)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Served]:
    """The same on three processes."""
    running = start(tmp_path_factory.mktemp("ranks"), checkpoint, 3, "--port", "0", sharding="pipeline")
    yield running
    stop(running)


def test_answers_are_those_of_one_process(served: Served, checkpoint: Path, said: dict[str, str]) -> None:
    """One by one, with prompts that are known, and in one batch."""
    assert len(set("".join(said.values()))) > 20
    (part,) = served.client.models.list().data
    network = 4 * 5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)  # bytes of the layers, without norms and biases
    stored = inspect(checkpoint).weight_bytes
    assert part.memory_bytes < stored - network / 2  # type: ignore[attr-defined]
    for _ in range(2):
        assert {prompt: ask(served.client, prompt) for prompt in PROMPTS} == said
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda prompt: ask(served.client, prompt), PROMPTS * 2)] == [*said.values()] * 2


@pytest.mark.slow
def test_a_lost_rank(served: Served, said: dict[str, str]) -> None:
    """A client that goes takes nothing with it; a rank in the middle that is killed ends requests, and comes back."""
    left = stream(served.client, PROMPTS[1], max_tokens=4000)
    next(left)
    chunks = stream(served.client, PROMPTS[0], max_tokens=4000)
    next(chunks)
    left.close()
    assert ask(served.client, PROMPTS[2]) == said[PROMPTS[2]]
    before = served.ranks()
    before[1].kill()
    with pytest.raises(openai.APIError) as caught:
        list(chunks)
    assert caught.value.code == "engine_died"
    psutil.wait_procs(before.values(), 10)
    served.until_healthy()
    assert ask(served.client, PROMPTS[3]) == said[PROMPTS[3]]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["pipeline", "tensor"])
def test_a_mixture_of_experts(tmp_path: Path, sharding: str) -> None:
    """A DeepSeek can be divided either way."""
    path = build_mixture(tmp_path / "tiny")
    served = start(tmp_path, path, 2, "--port", "0", sharding=sharding)
    assert {prompt: ask(served.client, prompt) for prompt in PROMPTS} == answers(path)
    stop(served)


def test_layers_that_cannot_be_dealt_out(tmp_path: Path, model: Path) -> None:
    """Architectures that mlx-lm has no pipeline of are refused."""
    refused = begin(tmp_path, model, write_hosts(tmp_path, 2, sharding="pipeline"), "--port", "0")
    assert "mlx-lm cannot deal out the layers of a model of the architecture 'llama'" in refused.failure()
