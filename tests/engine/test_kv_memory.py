"""What the caches of a batch may take: refusal, waiting and interruption instead of an allocation that kills."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.config import EngineConfig
from lib_mlx.engine import engine
from lib_mlx.engine.kv_budget import KVBudget
from lib_mlx.errors import InsufficientMemory
from lib_mlx.generation import Constraint, SamplingParams
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.kv_cache import Footprint
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel

STEP = 256  # tokens by which caches grow


@pytest.fixture
def limited(crafted: Path) -> Iterator[Callable[[int], EngineModel]]:
    """Return a function that loads a model whose caches have room for so many rows of `STEP` tokens."""
    loaded: list[EngineModel] = []

    def load(steps: int) -> EngineModel:
        model = engine.load(inspect(crafted))
        loaded.append(model)
        scheduler = model._scheduler
        scheduler._budget.limit = steps * scheduler._kind.row.of(STEP)
        return model

    yield load
    for model in loaded:
        model.unload()


def test_a_row_may_have_grown_by_a_step() -> None:
    """Caches grow by 256 tokens; a rotating one stops at its window, a recurrent one does not grow."""
    row = Footprint(per_token=10, windows=((3, 300),), fixed=7)
    assert [row.of(tokens) for tokens in (1, 2, 100)] == [7 + 2560 + 768, 7 + 2570 + 771, 7 + 3550 + 900]


def test_a_batch_is_padded_to_its_longest() -> None:
    """Rows times longest, each one token longer than now."""
    budget = KVBudget(Footprint(per_token=1), limit=1000)
    assert budget.need(0, 0) == 0
    assert budget.need(3, 256) == 3 * (257 + 255)
    assert budget.excess(1500, lambda: 0) == 500


def test_without_a_limit_the_free_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of what is free may be taken besides what is held already."""
    monkeypatch.setattr("lib_mlx.engine.kv_budget._free_bytes", lambda: 1000)
    budget = KVBudget(Footprint(per_token=1))
    assert budget.excess(850, lambda: 100) == 0
    assert budget.excess(851, lambda: 100) == 1


def test_prompts_count_before_they_are_processed(crafted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit, what is free now is promised once: to those that were admitted, not to the next ones again."""
    loaded = engine.load(inspect(crafted), EngineConfig(prefix_cache_bytes=0))
    try:
        scheduler = loaded._scheduler
        memory, most = 4 * scheduler._kind.row.of(1000), 0
        monkeypatch.setattr("lib_mlx.engine.kv_budget._FRESH_S", 0)
        monkeypatch.setattr(
            "lib_mlx.engine.kv_budget._free_bytes", lambda: max(0, memory - scheduler._batch.prompt_cache_nbytes)
        )
        batch_next = scheduler._batch.next

        def watched() -> object:
            nonlocal most
            events = batch_next()
            most = max(most, scheduler._batch.prompt_cache_nbytes)
            return events

        scheduler._batch.next = watched
        scheduler._pace.rate = 256.0
        runs = [Run(loaded, f"loop {number} " + "x" * 700, max_tokens=200) for number in range(10)]
        assert {run.wait().end.reason for run in runs} == {"length"}
        assert memory / 4 < most < memory
    finally:
        loaded.unload()


def test_what_can_never_fit_is_refused(limited: Callable[[int], EngineModel]) -> None:
    """A prompt too long for the memory fails with both figures in words, and the engine goes on."""
    model = limited(2)
    run = Run(model, "hello " + "x" * 900).wait()
    assert run.failure.error.code == InsufficientMemory.code
    assert "tokens needs" in str(run.failure.error)
    assert Run(model, "hello").wait().end.reason == "stop"


def test_an_answer_that_grows_too_long_fails(limited: Callable[[int], EngineModel]) -> None:
    """Alone in memory and still growing: it ends with an error, not with the process."""
    run = Run(limited(1), "loop").wait()
    assert run.failure.error.code == InsufficientMemory.code
    assert 0 < run.failure.usage.completion < STEP


def test_what_does_not_fit_yet_waits(limited: Callable[[int], EngineModel]) -> None:
    """More requests than the memory holds are answered, one after the other."""
    model = limited(2)
    most = 0
    batch_next = model._scheduler._batch.next

    def watched() -> object:
        nonlocal most
        most = max(most, len(model._scheduler._jobs))
        return batch_next()

    model._scheduler._batch.next = watched
    runs = [Run(model, f"hello {number}") for number in range(8)]
    assert {run.wait().end.reason for run in runs} == {"stop"}
    assert most == 3  # of a few tokens each: they have room for a step more


@pytest.mark.parametrize("kind", ["greedy", "seeded", "penalties", "grammar"])
def test_an_interrupted_request_goes_on_where_it_was(
    limited: Callable[[int], EngineModel], model: EngineModel, kind: str
) -> None:
    """When rows outgrow the memory the youngest waits and is computed again: its tokens are those it makes alone."""
    never_end = tuple((token, -1e5) for token in model._tokenizer.wrapper.eos_token_ids)
    hot = SamplingParams(temperature=60.0, seed=5, logit_bias=never_end)
    options: dict[str, Any] = {
        "greedy": {"sampling": SamplingParams(temperature=0)},
        "seeded": {"sampling": hot},
        "penalties": {"sampling": replace(hot, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.1)},
        "grammar": {"sampling": hot, "constraint": Constraint("regex", "[a-f ]{700,800}!")},
    }[kind]
    alone = Run(model, "loop", max_tokens=640, **options).wait()
    short = limited(4)
    removed = 0
    remove = short._scheduler._batch.remove

    def counted(uids: list[int], *args: object, **kwargs: object) -> object:
        nonlocal removed
        removed += not kwargs
        return remove(uids, *args, **kwargs)

    short._scheduler._batch.remove = counted
    runs = [Run(short, "loop", max_tokens=640, **options) for _ in range(3)]
    for run in runs:
        assert run.wait().job.made == alone.job.made
        assert (run.text, run.end.usage.completion) == (alone.text, alone.end.usage.completion)
    assert removed > 0


def test_guesses_of_an_interrupted_request(crafted: Path) -> None:
    """What was decided ahead and not told is decided again, by a grammar that has not seen it."""
    options: dict[str, Any] = {
        "constraint": Constraint("regex", "(abcdef ){200}!"),
        "max_tokens": 640,
        "thinking": False,
    }
    model = engine.load(inspect(crafted), EngineConfig(prompt_lookup=True))
    try:
        scheduler = model._scheduler
        alone = Run(model, "loop", **options).wait()
        scheduler._budget.limit = 4 * scheduler._kind.row.of(STEP)
        ahead = []
        remove = scheduler._batch.remove

        def watched(uids: list[int], *args: object, **kwargs: object) -> object:
            ahead.extend(len(scheduler._batch._courses[uid].ready) for uid in uids if not kwargs)
            return remove(uids, *args, **kwargs)

        scheduler._batch.remove = watched
        runs = [Run(model, "loop" + "!" * more, **options) for more in range(3)]
        assert [run.wait().text for run in runs] == [alone.text] * 3
        assert max(ahead) > 1
    finally:
        model.unload()


def test_what_is_kept_of_past_requests_gives_way(limited: Callable[[int], EngineModel]) -> None:
    """The prefix cache is dropped before a running request is interrupted."""
    model = limited(4)
    Run(model, "hello " + "x" * 200).wait()
    assert model._scheduler.prefixes.nbytes > 0
    run = Run(model, "long " + "y" * 900, max_tokens=4).wait()
    assert run.end.reason in {"stop", "length"}


def test_the_limit_of_a_load(crafted: Path) -> None:
    """`memory_limit_bytes` counts weights too: below them the load is refused, above them the rest is for caches."""
    with pytest.raises(InsufficientMemory) as refused:
        engine.load(inspect(crafted), EngineConfig(memory_limit_bytes=1000))
    assert refused.value.param == "memory_limit_bytes"
    loaded = engine.load(inspect(crafted), EngineConfig(memory_limit_bytes=100_000_000, prefix_cache_bytes=0))
    try:
        assert 0 < (loaded._scheduler._budget.limit or 0) < 100_000_000
        assert Run(loaded, "hello").wait().end.usage.cached == 0
        assert Run(loaded, "hello").wait().end.usage.cached == 0
    finally:
        loaded.unload()
