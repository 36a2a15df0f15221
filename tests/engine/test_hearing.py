"""Requests with sounds through the whole engine: what is kept of them, and how they end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lib_mlx.config import EngineConfig
from lib_mlx.engine import engine
from lib_mlx.engine.event_stream import ThreadEventStream
from lib_mlx.errors import Cancelled, ShuttingDown
from lib_mlx.generation import Failed, Finished, GenerationRequest, Message, SamplingParams, Sound
from lib_mlx.models.checkpoint import inspect
from tests.models.hearing import build, tone, written

if TYPE_CHECKING:
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.engine.job import Job

SOUND = Sound(written(tone(1.3)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("hearing") / "tiny")


def begin(model: EngineModel, *parts: str | Sound) -> tuple[Job, ThreadEventStream]:
    text = "".join(part for part in parts if isinstance(part, str))
    request = GenerationRequest(
        messages=(Message("user", text, parts=parts),), sampling=SamplingParams(temperature=0), max_tokens=6
    )
    stream = ThreadEventStream()
    return model.submit(model.prepare(request), stream), stream


def end(stream: ThreadEventStream) -> Finished | Failed:
    while True:
        for event in stream.get():
            if isinstance(event, Finished | Failed):
                return event


def test_a_sound_that_comes_again(checkpoint: Path) -> None:
    """It is encoded once, whatever stands around it; the encoder's weights come with the first."""
    model = engine.load(inspect(checkpoint), EngineConfig(prefix_cache_bytes=0))
    try:
        assert model.encoders == "waiting"
        texts = []
        for parts in ((SOUND, "What?"), ("Listen: ", SOUND), (SOUND, "What?")):
            job, stream = begin(model, *parts)
            assert isinstance(end(stream), Finished)
            texts.append(job.made)
        assert texts[0] == texts[2] != texts[1]
        assert model.encoders == "loaded"
        assert model._encoder is not None
        kept = model._encoder.features
        assert (kept.hits, kept.misses) == (2, 1)
    finally:
        model.unload()


def test_ends(checkpoint: Path) -> None:
    """A request with a sound can be cancelled, and ends when its model is unloaded."""
    model = engine.load(inspect(checkpoint))
    try:
        job, stream = begin(model, SOUND, "What?")
        model.cancel(job, Cancelled("enough"))
        failed = end(stream)
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, Cancelled)
        assert isinstance(end(begin(model, SOUND, "What?")[1]), Finished)
        other = begin(model, Sound(written(tone(9))), "What?")[1]
    finally:
        model.unload()
    last = end(other)
    assert isinstance(last, Failed)
    assert isinstance(last.error, Cancelled | ShuttingDown)
