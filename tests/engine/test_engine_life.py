"""Loading and unloading: slices, races, cancellation, and nothing left behind."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psutil
import pytest

from lib_mlx.engine import engine
from lib_mlx.engine.event_stream import ThreadEventStream
from lib_mlx.errors import (
    Cancelled,
    LoadCancelled,
    ShuttingDown,
)
from lib_mlx.generation import Failed, GenerationRequest, Message
from lib_mlx.models.checkpoint import inspect
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel


def test_unload_ends_requests_and_frees_the_engine(crafted: Path) -> None:
    """Requests under way end with `shutting_down`; no thread stays behind."""
    loaded = engine.load(inspect(crafted))
    run = Run(loaded, "loop")
    run.events += run.stream.get()
    loaded.unload()
    assert run.wait().failure.error.code == ShuttingDown.code


def test_requests_that_race_an_unload_end(crafted: Path) -> None:
    """A request submitted to a model that is gone ends with `shutting_down`; nothing hangs, nothing else is raised."""
    loaded = engine.load(inspect(crafted))
    prepared = loaded.prepare(GenerationRequest(messages=(Message("user", "hello"),)))
    loaded.unload()
    loaded.unload()
    stream = ThreadEventStream()
    loaded.submit(prepared, stream)
    (failed,) = stream.get()
    assert isinstance(failed, Failed)
    assert failed.error.code == "shutting_down"
    for call in (loaded.suspend, loaded.resume, lambda: Run(loaded, "hello")):
        with pytest.raises(ShuttingDown):
            call()


def test_other_streams_go_on_while_a_model_loads(model: EngineModel, crafted: Path) -> None:
    """A load is done in slices, between which running streams advance and cancellations are seen."""
    run = Run(model, "loop")
    run.events += run.stream.get()
    made: list[int] = []

    def slice_done(_fraction: float, _stage: str) -> None:
        made.append(run.job.completion)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib_mlx.models.loader._EVAL_BYTES", 1)
        engine.load(inspect(crafted), progress=slice_done).unload()
    model.cancel(run.job, Cancelled("enough"))
    run.wait()
    assert len(set(made)) > 5


def test_loads_and_unloads_leave_no_thread_behind(crafted: Path) -> None:
    """The engine thread is reused: native and Python threads do not grow with loads."""

    def cycle() -> int:
        loaded = engine.load(inspect(crafted))
        Run(loaded, "hello").wait()
        loaded.unload()
        return psutil.Process().num_threads() + threading.active_count()

    cycle()
    counts = [cycle() for _ in range(4)]
    assert counts[-1] <= counts[0]


def test_a_load_can_be_cancelled(crafted: Path) -> None:
    """A load that is told to stop raises and leaves nothing loaded."""
    with pytest.raises(LoadCancelled):
        engine.load(inspect(crafted), cancelled=lambda: True)


def test_a_load_cancelled_at_any_stage_leaves_nothing(crafted: Path) -> None:
    """However far it has come: no weights stay in memory and no lane with the worker."""
    import mlx.core as mx

    from lib_mlx.engine.worker import get_worker

    stages: list[str] = []
    engine.load(inspect(crafted), progress=lambda _fraction, stage: stages.append(stage)).unload()
    before, lanes = mx.get_active_memory(), len(get_worker()._lanes)
    for stage in dict.fromkeys(stages[:-1]):
        reached = threading.Event()

        def progress(_fraction: float, now: str, stage: str = stage, reached: threading.Event = reached) -> None:
            if now == stage:
                reached.set()

        with pytest.raises(LoadCancelled):
            engine.load(inspect(crafted), progress=progress, cancelled=reached.is_set)
        assert (mx.get_active_memory(), len(get_worker()._lanes)) == (before, lanes), stage


def test_progress_goes_from_zero_to_one(crafted: Path) -> None:
    """Progress never goes back and ends at 1."""
    seen: list[float] = []
    engine.load(inspect(crafted), progress=lambda fraction, _stage: seen.append(fraction)).unload()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_the_import_leaves_the_descriptor_limit_alone() -> None:
    """mlx-lm lowers RLIMIT_NOFILE when imported; the limit is the host's."""
    import subprocess
    import sys

    code = (
        "import resource as r; before = r.getrlimit(r.RLIMIT_NOFILE); import lib_mlx.models.upstream;"
        "assert r.getrlimit(r.RLIMIT_NOFILE) == before, (before, r.getrlimit(r.RLIMIT_NOFILE))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
