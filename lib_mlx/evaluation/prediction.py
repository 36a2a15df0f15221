"""Perplexity of a text, and the divergence of one model's predictions from another's."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidArgument
from lib_mlx.models import store
from lib_mlx.models.checkpoint import inspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import mlx.core as mx

    from lib_mlx.config import CpuWeights
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import Weights

    Progress = Callable[[int, int], None]

LENGTH = 512


@dataclass(frozen=True)
class Perplexity:
    """How well a text was predicted."""

    perplexity: float
    """e to the mean loss of a token."""
    standard_error: float
    """Of the perplexity, from the spread of the tokens' losses."""
    tokens: int


@dataclass(frozen=True)
class Divergence:
    """How far predictions are from those of a reference."""

    mean_kl: float
    """Kullback-Leibler divergence of the reference's distribution from the model's, in nats a token."""
    largest_kl: float
    same_first: float
    """The share of tokens where both hold the same one for the likeliest."""
    perplexity: float
    reference_perplexity: float
    tokens: int


def perplexity(
    model_path: str,
    text: str,
    *,
    length: int = LENGTH,
    cpu_weights: CpuWeights = "auto",
    progress: Progress = lambda _done, _total: None,
) -> Perplexity:
    """Return how well a model predicts `text`, cut into pieces of `length` tokens. Blocks.

    Raises:
        InvalidArgument: the text is too short.
        LibMlxError: the model is not there or cannot be read.
    """
    checkpoint = inspect(store.resolve(model_path))
    pieces = _pieces(checkpoint, text, length)
    weights = _load(checkpoint, cpu_weights)
    losses: list[float] = []
    try:
        for number, piece in enumerate(pieces, 1):
            losses += get_worker().run(lambda piece=piece: _losses(weights[0], piece))
            progress(number, len(pieces))
    finally:
        get_worker().run(weights.clear)
    mean = math.fsum(losses) / len(losses)
    variance = math.fsum((loss - mean) ** 2 for loss in losses) / max(1, len(losses) - 1)
    return Perplexity(math.exp(mean), math.exp(mean) * math.sqrt(variance / len(losses)), len(losses))


def divergence(
    model_path: str,
    reference_path: str,
    text: str,
    *,
    length: int = LENGTH,
    cpu_weights: CpuWeights = "auto",
    progress: Progress = lambda _done, _total: None,
) -> Divergence:
    """Return how far a model's predictions of `text` are from those of a reference with the same vocabulary. Blocks.

    Raises:
        InvalidArgument: the text is too short, or the vocabularies differ.
        LibMlxError: a model is not there or cannot be read.
    """
    checkpoint, reference = inspect(store.resolve(model_path)), inspect(store.resolve(reference_path))
    pieces = _pieces(checkpoint, text, length)
    if pieces != _pieces(reference, text, length):
        raise InvalidArgument("The models have different tokens.", hint="Compare models of one family.", param="model")
    weights = [*_load(checkpoint, cpu_weights), *_load(reference, cpu_weights)]
    found: list[tuple[float, float, float, float]] = []
    try:
        if weights[0].vocab_size != weights[1].vocab_size:
            raise InvalidArgument("The models have vocabularies of different sizes.", hint="Compare others.")
        for number, piece in enumerate(pieces, 1):
            found += get_worker().run(lambda piece=piece: _compare(weights[0], weights[1], piece))
            progress(number, len(pieces))
    finally:
        get_worker().run(weights.clear)
    kl, same, own, other = zip(*found, strict=True)
    count = len(found)
    return Divergence(
        math.fsum(kl) / count,
        max(kl),
        math.fsum(same) / count,
        math.exp(math.fsum(own) / count),
        math.exp(math.fsum(other) / count),
        count,
    )


def read_text(path: Path) -> str:
    """Return the text in a file; raises InvalidArgument if there is none."""
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}.", hint="Name a text in UTF-8.", param="text") from None


def _load(checkpoint: Checkpoint, cpu_weights: CpuWeights) -> list[Weights]:
    """Return the weights in a list, which alone holds them: it is cleared on the engine thread."""
    worker = get_worker()
    worker.run(importlib.import_module, "lib_mlx.engine.assembly")  # see engine.loading

    def load() -> list[Weights]:
        from lib_mlx.engine.device import set_up
        from lib_mlx.models.loader import load_weights

        set_up()
        return [load_weights(checkpoint, lambda _: None, lambda: False, cpu_weights)]

    return worker.run(load)


def _pieces(checkpoint: Checkpoint, text: str, length: int) -> list[list[int]]:
    from lib_mlx.models.loader import load_tokenizer

    tokens = list(load_tokenizer(checkpoint).wrapper.backend_tokenizer.encode(text).ids)
    pieces = [tokens[at : at + length] for at in range(0, len(tokens), length)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise InvalidArgument(f"The text has {len(tokens)} tokens.", hint="Two at least are needed.", param="text")
    return pieces


def _log_probabilities(weights: Weights, piece: list[int]) -> mx.array:
    """Return what is predicted behind each token but the last: (tokens - 1, vocabulary)."""
    import mlx.core as mx

    from lib_mlx.models.kv_cache import new_cache

    network = cast("Any", weights.network)
    logits = network(mx.array([piece[:-1]]), cache=new_cache(network, None))[0].astype(mx.float32)
    return cast("mx.array", logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def _losses(weights: Weights, piece: list[int]) -> list[float]:
    import mlx.core as mx

    found = mx.take_along_axis(_log_probabilities(weights, piece), mx.array(piece[1:])[:, None], axis=-1)
    return cast("list[float]", (-found[:, 0]).tolist())


def _compare(model: Weights, reference: Weights, piece: list[int]) -> list[tuple[float, float, float, float]]:
    """Return of each token: divergence, whether the likeliest is the same, the loss of both."""
    import mlx.core as mx

    own, other = (_log_probabilities(weights, piece) for weights in (model, reference))
    kl = (mx.exp(other) * (other - own)).sum(axis=-1)
    same = (own.argmax(axis=-1) == other.argmax(axis=-1)).astype(mx.float32)
    said = mx.array(piece[1:])[:, None]
    losses = [-mx.take_along_axis(array, said, axis=-1)[:, 0] for array in (own, other)]
    rows = mx.stack([kl, same, *losses], axis=1).tolist()
    return [(a, b, c, d) for a, b, c, d in cast("list[list[float]]", rows)]
