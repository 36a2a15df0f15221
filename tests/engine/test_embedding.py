"""Vectors of texts."""

from __future__ import annotations

import json
import shutil
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lib_mlx.engine import engine
from lib_mlx.engine.embedding import CHUNK
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import Cancelled, ShuttingDown, UnsupportedFeature
from lib_mlx.models.checkpoint import inspect
from tests.checkpoints.other_caches import random_checkpoint
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from pathlib import Path

TEXT = list(range(5, 5 + 2 * CHUNK + 10))


@pytest.mark.parametrize(("key", "mode"), [("mean_tokens", "mean"), ("cls_token", "first"), ("lasttoken", "last")])
def test_chunks_make_no_difference(crafted: Path, tmp_path: Path, key: str, mode: str) -> None:
    """A text of several chunks gives what its hidden states give at once, pooled as the checkpoint says."""
    path = tmp_path / "model"
    get_worker().run(random_checkpoint, path, "llama", crafted)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{key}": True}))
    (path / "modules.json").write_text("[]")
    loaded = engine.load(inspect(path))
    tokens = [token % loaded.vocab_size for token in TEXT]

    def states() -> np.ndarray:
        import mlx.core as mx

        return np.array(loaded._embedder._embedder._network.model(mx.array([tokens]))[0].astype(mx.float32))

    try:
        vector, count = loaded.embed(tokens)
        expected = get_worker().run(states)
        pooled = {"mean": expected.mean(axis=0), "first": expected[0], "last": expected[-1]}[mode]
        assert count == len(tokens)
        assert np.allclose(vector, pooled, atol=2e-3)
    finally:
        loaded.unload()


def test_streams_go_on_meanwhile(crafted: Path) -> None:
    """A running answer gets tokens between the chunks of a long text."""
    loaded = engine.load(inspect(crafted))
    try:
        run = Run(loaded, "loop", max_tokens=2000)
        while not run.job.made:
            time.sleep(0.005)
        before = len(run.job.made)
        loaded.embed(TEXT)
        assert len(run.job.made) - before >= len(TEXT) // CHUNK - 1
        loaded.cancel(run.job, Cancelled("enough"))
    finally:
        loaded.unload()


def test_given_up(crafted: Path) -> None:
    """Asked after each chunk, it ends with `cancelled`; an unload ends it as well."""
    loaded = engine.load(inspect(crafted))
    with pytest.raises(Cancelled):
        loaded.embed(TEXT, cancelled=lambda: True)
    errors: list[Exception] = []

    def embed() -> None:
        try:
            while True:
                loaded.embed(TEXT)
        except ShuttingDown as error:
            errors.append(error)

    embedding = threading.Thread(target=embed)
    embedding.start()
    time.sleep(0.05)
    loaded.unload()
    embedding.join(10)
    assert len(errors) == 1


def test_a_model_without_hidden_states(crafted: Path, tmp_path: Path) -> None:
    """It is refused by name."""
    path = get_worker().run(random_checkpoint, tmp_path / "model", "mamba2", crafted)
    loaded = engine.load(inspect(path))
    try:
        with pytest.raises(UnsupportedFeature, match="no embeddings"):
            loaded.embed("hello")
    finally:
        loaded.unload()
        shutil.rmtree(path)
