"""Perplexity and divergence, against a plain reading of their definitions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidArgument
from lib_mlx.evaluation.prediction import divergences, perplexity, read_text
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_tokenizer
from tests.checkpoints.tiny import build_tiny

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "A text of some length, so that there are a few pieces of it."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of random weights."""
    folder = tmp_path_factory.mktemp("models")
    return [build_tiny(folder / f"m{seed}", seed) for seed in (0, 1)]


def reference(model: Path, length: int) -> list[np.ndarray]:
    """mlx-lm's own log-probabilities of each piece."""
    import mlx.core as mx

    from lib_mlx.models.upstream import load_model

    tokens = load_tokenizer(inspect(model)).wrapper.backend_tokenizer.encode(TEXT).ids
    pieces = [tokens[at : at + length] for at in range(0, len(tokens), length)]

    def compute() -> list[np.ndarray]:
        network = load_model(model)[0]
        found = []
        for piece in pieces:
            if len(piece) > 1:
                logits = np.array(network(mx.array([piece[:-1]]))[0].astype(mx.float32), dtype=np.float64)
                found.append(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
        return found

    return get_worker().run(compute)


def test_perplexity(models: list[Path]) -> None:
    """It is e to the mean loss, over pieces that do not know each other; its error follows from the spread."""
    tokens = load_tokenizer(inspect(models[0])).wrapper.backend_tokenizer.encode(TEXT).ids
    losses = []
    for number, piece in enumerate(reference(models[0], 16)):
        losses += [-row[tokens[number * 16 + at + 1]] for at, row in enumerate(piece)]
    found = perplexity(str(models[0]), TEXT, length=16)
    assert found.tokens == len(losses)
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    expected = math.exp(np.mean(losses)) * np.std(losses, ddof=1) / math.sqrt(len(losses))
    assert found.standard_error == pytest.approx(expected, rel=1e-3)


def test_divergence(models: list[Path]) -> None:
    """It is the mean over tokens of the reference's expectation of the difference; of a model from itself it is 0."""
    own, other = (np.concatenate(reference(model, 16)) for model in models)
    kl = (np.exp(other) * (other - own)).sum(axis=-1)
    found = divergences([str(models[0])], str(models[1]), TEXT, length=16)[0]
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
    assert found.largest_kl == pytest.approx(kl.max(), rel=1e-3)
    assert found.same_first == pytest.approx((own.argmax(-1) == other.argmax(-1)).mean())
    assert found.perplexity == pytest.approx(perplexity(str(models[0]), TEXT, length=16).perplexity)
    assert found.reference_perplexity == pytest.approx(perplexity(str(models[1]), TEXT, length=16).perplexity)
    itself = divergences([str(models[0])], str(models[0]), TEXT)[0]
    assert (itself.mean_kl, itself.same_first) == (pytest.approx(0, abs=1e-6), 1.0)


def test_what_is_wrong(models: list[Path], crafted: Path, tmp_path: Path) -> None:
    """Too short a text, a missing file, and another vocabulary are told."""
    with pytest.raises(InvalidArgument, match="Two at least"):
        perplexity(str(models[0]), "a")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_text(tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_text(tmp_path / "latin")
