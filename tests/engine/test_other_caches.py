"""Models whose caches rotate, do not grow, or cannot be merged: same tokens alone, in company and from the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lib_mlx.config import EngineConfig
from lib_mlx.engine import engine
from lib_mlx.engine.event_stream import ThreadEventStream
from lib_mlx.engine.serial import SerialGenerator
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import Cancelled, UnsupportedFeature
from lib_mlx.generation import Finished, GenerationRequest, Message, SamplingParams
from lib_mlx.models.checkpoint import inspect
from tests.checkpoints.other_caches import CONFIGS, random_checkpoint
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel

GREEDY = SamplingParams(temperature=0)
# An answer of 60 tokens: over the windows, and over more than one chunk of prompt.
PROMPTS = [f"{word} {'x' * length}" for word, length in (("hello", 5), ("think", 150), ("long", 40), ("loop", 90))]


@pytest.fixture(scope="module")
def checkpoint(crafted: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a random checkpoint by its type, written once."""
    root = tmp_path_factory.mktemp("random")

    def get(model_type: str) -> Path:
        path = root / model_type
        return path if path.exists() else get_worker().run(random_checkpoint, path, model_type, crafted)

    return get


@pytest.fixture(params=[*CONFIGS, "llama in 8 bits"])
def other(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[EngineModel]:
    """A model of each kind, which has seen no request."""
    model_type, _, quantised = request.param.partition(" ")
    config = EngineConfig(kv_bits=8) if quantised else EngineConfig()
    loaded = engine.load(inspect(checkpoint(model_type)), config)
    yield loaded
    loaded.unload()


def start(model: EngineModel, prompt: str, **options: object) -> Run:
    """Start an answer of 60 tokens at most."""
    return Run(model, prompt, **{"max_tokens": 60, "sampling": GREEDY, **options})


def test_alone_and_in_company(other: EngineModel) -> None:
    """Requests of different lengths that run together make the tokens they make alone."""
    alone = [start(other, prompt).wait().job.made for prompt in PROMPTS]
    other._scheduler.prefixes.clear()
    together = [start(other, prompt) for prompt in PROMPTS]
    assert [run.wait().job.made for run in together] == alone


def test_reuse(other: EngineModel) -> None:
    """Asked again, or asked something else after the same instructions, the answer is that of a fresh model."""

    def ask(question: str) -> tuple[list[int], int]:
        run = Run(other, question, sampling=GREEDY, max_tokens=40, system="y" * 200).wait()
        return run.job.made, run.end.usage.cached

    questions = ["hello one", "hello one", "zebra two"]
    fresh = []
    for question in questions:
        other._scheduler.prefixes.clear()
        made, cached = ask(question)
        assert cached == 0
        fresh.append(made)
    other._scheduler.prefixes.clear()
    answers = [ask(question) for question in questions]
    assert [made for made, _ in answers] == fresh
    assert answers[0][1] == 0
    assert all(cached > 200 for _, cached in answers[1:])


def test_reuse_while_it_is_made(other: EngineModel) -> None:
    """Requests that come together share their instructions, which only one of them processes."""

    def ask(question: str) -> Run:
        return Run(other, question, sampling=GREEDY, max_tokens=20, system="y" * 200)

    questions = ["hello one", "zebra two", "quite another", "tell me"]
    fresh = []
    for question in questions:
        other._scheduler.prefixes.clear()
        fresh.append(ask(question).wait().job.made)
    other._scheduler.prefixes.clear()
    other.suspend()
    runs = [ask(question) for question in questions]
    other.resume()
    assert [run.wait().job.made for run in runs] == fresh
    assert sum(run.end.usage.cached > 200 for run in runs) == 3


def test_several_answers(other: EngineModel) -> None:
    """Those that begin with the first one's cache make the tokens that they make from a prompt of their own."""
    hot = SamplingParams(temperature=5.0, seed=3)
    alone = []
    for choice in range(3):
        other._scheduler.prefixes.clear()
        alone.append(start(other, PROMPTS[0], sampling=replace(hot, seed=3 + choice)).wait().job.made)
    other._scheduler.prefixes.clear()
    request = GenerationRequest((Message("user", PROMPTS[0]),), sampling=hot, max_tokens=60)
    streams = [ThreadEventStream() for _ in range(3)]
    jobs = other.submit_choices(other.prepare(request), streams)
    for stream in streams:
        while not isinstance(stream.get()[-1], Finished):
            pass
    assert [job.made for job in jobs] == alone
    assert all(job.cached for job in jobs[1:])


def test_cancelled_at_any_place(other: EngineModel) -> None:
    """A request may leave while its prompt is processed or it decodes; the others do not notice."""
    alone = start(other, PROMPTS[1]).wait().job.made
    other._scheduler.prefixes.clear()
    for wait in range(4):
        leaving = [start(other, f"{prompt} {wait}") for prompt in PROMPTS]
        staying = start(other, PROMPTS[1])
        if wait:
            leaving[wait].events += leaving[wait].stream.get()
        for run in leaving:
            other.cancel(run.job, Cancelled("enough"))
        assert staying.wait().job.made == alone
        for run in leaving:
            run.wait()
    assert not other._scheduler.busy


def test_what_cannot_be_merged_takes_turns(checkpoint: Callable[[str], Path]) -> None:
    """With a quantised cache two answers grow side by side, and neither waits for the other's end."""
    loaded = engine.load(inspect(checkpoint("llama")), EngineConfig(kv_bits=4))
    try:
        assert isinstance(loaded._scheduler._batch, SerialGenerator)
        first = start(loaded, "hello", max_tokens=400)
        first.events += first.stream.get()
        second = start(loaded, "loop", max_tokens=5).wait()
        assert second.end.usage.completion > 0
        assert first.job.completion < 300
        first.wait()
    finally:
        loaded.unload()


@pytest.mark.parametrize("model_type", ["gemma3_text", "lfm2", "mamba2"])
def test_a_cache_that_cannot_be_quantised(checkpoint: Callable[[str], Path], model_type: str) -> None:
    """`kv_bits` is refused by name where a layer's cache has no quantised form."""
    with pytest.raises(UnsupportedFeature) as refused:
        engine.load(inspect(checkpoint(model_type)), EngineConfig(kv_bits=8))
    assert refused.value.param == "kv_bits"
