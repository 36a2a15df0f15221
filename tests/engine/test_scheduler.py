"""Scheduling: what is reused, who goes first, who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.engine import assembly, engine
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import Cancelled
from lib_mlx.generation import SamplingParams
from lib_mlx.models.checkpoint import inspect
from tests.checkpoints import SCRIPTS
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.engine.job import Job

GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def fresh(crafted: Path) -> Iterator[EngineModel]:
    """A model that has seen no request."""
    loaded = engine.load(inspect(crafted))
    yield loaded
    loaded.unload()


def finished_in_order(*runs: Run) -> list[int]:
    """Wait for all; return their indexes by the time of their first token."""
    for run in runs:
        run.wait()
    return sorted(range(len(runs)), key=lambda index: runs[index].job._first_token or 0.0)


def test_a_repeated_prompt_is_not_computed_again(fresh: EngineModel) -> None:
    """The second time all but one token of the prompt come from the cache, and the answer is the same."""
    first = Run(fresh, "long " + "x" * 300).wait()
    again = Run(fresh, "long " + "x" * 300).wait()
    assert first.end.usage.cached == 0
    assert again.end.usage.cached == again.end.usage.prompt - 1
    assert again.text == first.text == SCRIPTS["long"].text()


def test_prompts_that_begin_alike_share_their_beginning(fresh: EngineModel) -> None:
    """Another question after the same beginning reuses just that."""
    Run(fresh, "hello " + "x" * 300 + "a" * 50).wait()
    other = Run(fresh, "hello " + "x" * 300 + "b" * 50).wait()
    assert 300 < other.end.usage.cached < other.end.usage.prompt - 50
    assert other.text == SCRIPTS["hello"].text()


def test_of_prompts_that_begin_alike_one_goes_first(fresh: EngineModel) -> None:
    """Asked at once, what several prompts have in common is computed once, and the answers are right."""
    fresh.suspend()
    runs = [Run(fresh, f"{name} {'x' * 300} {name}") for name in ("hello", "hello", "hello")]
    runs += [Run(fresh, "hello " + "x" * 300, cache_salt="other")]
    fresh.resume()
    cached = [run.wait().end.usage.cached for run in runs]
    assert [count > 300 for count in cached] == [False, True, True, False]
    assert {run.text for run in runs} == {SCRIPTS["hello"].text()}


def test_the_one_that_goes_first_is_cancelled(fresh: EngineModel) -> None:
    """Those that wait for its prompt process their own."""
    fresh.suspend()
    runs = [Run(fresh, "hello " + "x" * 3000, max_tokens=2) for _ in range(3)]
    fresh._scheduler._pace.rate = 100.0
    fresh.resume()
    fresh.cancel(runs[0].job, Cancelled("enough"))
    runs[0].wait()
    assert [run.wait().end.usage.completion for run in runs[1:]] == [2, 2]


def test_short_prompts_join_together(fresh: EngineModel) -> None:
    """Many prompts that one step can process are processed in one."""
    fresh.suspend()
    runs = [Run(fresh, "hello", max_tokens=3, cache_salt=str(number)) for number in range(12)]
    scheduler = fresh._scheduler
    scheduler._pace.rate = 1e5
    started: list[int] = []
    step = scheduler._next

    def watched() -> Any:
        started.append(len(scheduler._jobs))
        return step()

    scheduler._next = watched  # type: ignore[method-assign]
    fresh.resume()
    for run in runs:
        run.wait()
    assert started[0] == 12


def test_the_work_of_a_cancelled_request_is_kept(fresh: EngineModel) -> None:
    """A prompt that was cancelled while it was decoded is cached."""
    run = Run(fresh, "loop " + "x" * 500)
    run.events += run.stream.get()
    fresh.cancel(run.job, Cancelled("enough"))
    run.wait()
    assert Run(fresh, "loop " + "x" * 500, max_tokens=3).wait().end.usage.cached > 500


def test_sharing_in_the_same_batch(fresh: EngineModel) -> None:
    """Requests that run at the same time, some from the cache and some not, do not disturb each other."""
    prompts = [f"{name} {'x' * length}" for name in ("long", "think", "unicode") for length in (0, 40, 400)]
    alone = [Run(fresh, prompt, sampling=GREEDY).wait() for prompt in prompts]
    for _ in range(2):
        runs = [Run(fresh, prompt, sampling=GREEDY) for prompt in prompts]
        for one, other in zip(alone, [run.wait() for run in runs], strict=True):
            assert (one.text, one.reasoning) == (other.text, other.reasoning)


def test_the_bound_on_what_is_kept(crafted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past requests take no more memory than allowed."""
    monkeypatch.setattr(assembly, "_PREFIX_BYTES", 3_000_000)
    loaded = engine.load(inspect(crafted))
    try:
        for number in range(12):
            Run(loaded, f"hello {number} " + "x" * 400).wait()
        assert 0 < loaded._scheduler.prefixes.nbytes <= 3_000_000
    finally:
        loaded.unload()


def test_a_short_prompt_overtakes_long_ones(fresh: EngineModel) -> None:
    """Prompts are processed side by side: a short one does not wait for the long ones before it."""
    fresh.suspend()
    long = [Run(fresh, f"hello {number} " + "x" * 3500, max_tokens=1) for number in range(6)]
    short = Run(fresh, "hello", max_tokens=1)
    fresh.resume()
    assert finished_in_order(*long, short)[0] == len(long)


def test_waiting_makes_up_for_length(fresh: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two waiting prompts the short one goes first, unless the long one has waited long enough."""
    scheduler = fresh._scheduler
    admitted: list[int] = []
    insert = scheduler._insert

    def watched(job: Any) -> None:
        admitted.append(len(job.request.prompt))
        insert(job)

    monkeypatch.setattr(scheduler, "_insert", watched)
    monkeypatch.setattr("lib_mlx.engine.scheduler._PREFILLS", 1)
    for patience in (0.0, 1e9):
        monkeypatch.setattr("lib_mlx.engine.turns._AGEING", patience)
        fresh.suspend()
        runs = [Run(fresh, "hello " + "x" * length, max_tokens=1) for length in (900, 10)]
        fresh.resume()
        for run in runs:
            run.wait()
    assert [length > 500 for length in admitted] == [False, True, True, False]


@pytest.fixture
def begun(fresh: EngineModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The clients of the requests that have begun, in order; one prompt at a time is processed."""
    scheduler = fresh._scheduler
    clients: list[str] = []
    insert = scheduler._insert

    def watched(job: Job) -> None:
        clients.append(job.request.client)
        insert(job)

    monkeypatch.setattr(scheduler, "_insert", watched)
    monkeypatch.setattr("lib_mlx.engine.scheduler._PREFILLS", 1)
    return clients


@pytest.mark.parametrize("rows", [1, 8])
def test_clients_take_turns(fresh: EngineModel, begun: list[str], monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """One that asks for much does not keep another waiting, who comes last and with a longer prompt."""
    monkeypatch.setattr(fresh._scheduler, "_max_rows", rows)
    fresh.suspend()
    many = [Run(fresh, "hello", client="many", max_tokens=2) for _ in range(40)]
    one = Run(fresh, "hello " + "x" * 300, client="one", max_tokens=2)
    fresh.resume()
    for run in (*many, one):
        run.wait()
    assert begun.index("one") < 3
    assert sorted(begun) == ["many"] * 40 + ["one"]


def test_newcomers_wait_their_turn(fresh: EngineModel, begun: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many new clients come, one who has been served before is not left behind."""
    scheduler = fresh._scheduler
    monkeypatch.setattr(scheduler, "_max_rows", 1)
    runs: list[Run] = []
    insert = scheduler._insert

    def insert_while_others_come(job: Job) -> None:
        insert(job)
        runs.extend(
            Run(fresh, "hello", client=f"new {len(runs) + at}", max_tokens=2) for at in range(2) if len(runs) < 200
        )

    monkeypatch.setattr(scheduler, "_insert", insert_while_others_come)
    fresh.suspend()
    old = [Run(fresh, "hello " + "x" * 300, client="old", max_tokens=2) for _ in range(3)]
    fresh.resume()
    for run in old:
        run.wait()
    assert [at for at, client in enumerate(begun) if client == "old"][-1] < 20
    for run in runs:
        run.wait()
    assert len(scheduler._turns) < 100


def test_a_long_prompt_delays_a_stream_by_one_chunk_at_most(
    fresh: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a long prompt is processed, a running stream gets a token at every step."""
    monkeypatch.setattr("lib_mlx.engine.prefill_pace._MOST", 64)
    stream = Run(fresh, "loop", max_tokens=400)
    stream.events += stream.stream.get()
    made_before = stream.job.completion
    steps = 0
    scheduler_next = fresh._scheduler._batch.next

    def counted() -> Any:
        nonlocal steps
        steps += 1
        return scheduler_next()

    monkeypatch.setattr(fresh._scheduler._batch, "next", counted)
    long = Run(fresh, "hello " + "x" * 3000, max_tokens=1)
    long.wait()
    assert steps > 3000 / 64
    assert stream.job.completion - made_before >= min(steps, 390) - 2
    stream.wait()


def test_more_requests_than_rows(fresh: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into the batch waits and is answered."""
    monkeypatch.setattr(fresh._scheduler, "_max_rows", 3)
    runs = [Run(fresh, "hello", sampling=GREEDY) for _ in range(12)]
    assert {run.wait().text for run in runs} == {SCRIPTS["hello"].text()}
    assert fresh._scheduler._everyone() == []


def test_one_end_for_a_request_cancelled_as_it_starts(fresh: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cancellation comes from another thread, when it likes; there is one terminal event all the same."""
    scheduler = fresh._scheduler
    insert = scheduler._insert

    def insert_and_cancel(job: Job) -> None:
        insert(job)
        job.cancel(Cancelled("enough"))

    monkeypatch.setattr(scheduler, "_insert", insert_and_cancel)
    run = Run(fresh, "hello").wait()
    monkeypatch.undo()
    Run(fresh, "hello").wait()
    assert run.stream._pending.empty()


def test_a_request_cancelled_during_the_search_for_such_is_not_lost(fresh: EngineModel) -> None:
    """It ends at the next step, if not at this one."""

    class CancelsItsJobs(list["Job"]):
        looked = 0

        def __iter__(self) -> Iterator[Job]:
            self.looked += 1
            if self.looked == 2:
                run.job.cancel(Cancelled("enough"))
            return super().__iter__()

    def search() -> None:
        fresh._scheduler._waiting = CancelsItsJobs(fresh._scheduler._waiting)
        fresh._scheduler._end_failed([])

    fresh.suspend()
    run = Run(fresh, "hello")
    get_worker().run(search)
    fresh.resume()
    assert isinstance(run.wait().failure.error, Cancelled)


def test_one_end_for_a_request_whose_cache_is_not_kept(fresh: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure behind a request's last token is not its own any more."""

    def refuse(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(fresh._scheduler.prefixes, "store", refuse)
    run = Run(fresh, "hello").wait()
    monkeypatch.undo()
    assert run.text == SCRIPTS["hello"].text()
    Run(fresh, "hello").wait()
    assert run.stream._pending.empty()
