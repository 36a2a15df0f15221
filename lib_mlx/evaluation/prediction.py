"""Perplexity of a text, and the divergence of one model's predictions from another's."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lib_mlx.engine import heap
from lib_mlx.engine.imports import import_on_worker
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidArgument
from lib_mlx.models import store
from lib_mlx.models.checkpoint import inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import mlx.core as mx

    from lib_mlx.config import CpuWeights
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import Weights

    Progress = Callable[[int, int], None]

Row = TypeVar("Row")
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
    with _loaded(checkpoint, cpu_weights) as weights:
        losses = _each(pieces, partial(_losses, weights), progress)
    mean = math.fsum(losses) / len(losses)
    variance = math.fsum((loss - mean) ** 2 for loss in losses) / max(1, len(losses) - 1)
    return Perplexity(math.exp(mean), math.exp(mean) * math.sqrt(variance / len(losses)), len(losses))


def divergences(
    model_paths: Sequence[str],
    reference_path: str,
    text: str,
    *,
    length: int = LENGTH,
    cpu_weights: CpuWeights = "auto",
    progress: Progress = lambda _done, _total: None,
) -> list[Divergence]:
    """Return how far each model's predictions of `text` are from those of a reference with the same vocabulary. Blocks.

    Raises:
        InvalidArgument: the text is too short, or the vocabularies differ.
        LibMlxError: a model is not there or cannot be read.
    """
    checkpoints = [inspect(store.resolve(path)) for path in model_paths]
    reference = inspect(store.resolve(reference_path))
    pieces = _pieces(reference, text, length)
    for checkpoint in checkpoints:
        if pieces != _pieces(checkpoint, text, length):
            raise InvalidArgument(
                f"{checkpoint.path.name} and {reference.path.name} have different tokens.",
                hint="Compare models of one family.",
                param="model",
            )
    found = []
    with _loaded(reference, cpu_weights) as known:
        for checkpoint in checkpoints:
            with _loaded(checkpoint, cpu_weights) as weights:
                if weights[0].vocab_size != known[0].vocab_size:
                    raise InvalidArgument("The models have vocabularies of different sizes.", hint="Compare others.")
                rows = _each(pieces, partial(_compare, weights, known), progress)
            found.append(_summary(rows))
    return found


def _summary(rows: list[tuple[float, float, float, float]]) -> Divergence:
    kl, same, own, other = zip(*rows, strict=True)
    count = len(rows)
    return Divergence(
        math.fsum(kl) / count,
        max(kl),
        math.fsum(same) / count,
        math.exp(math.fsum(own) / count),
        math.exp(math.fsum(other) / count),
        count,
    )


def _each(pieces: list[list[int]], work: Callable[[list[int]], list[Row]], progress: Progress) -> list[Row]:
    """Return what `work` finds in all pieces, one after the other on the engine thread."""
    found: list[Row] = []
    for number, piece in enumerate(pieces, 1):
        found += get_worker().run(work, piece)
        progress(number, len(pieces))
    return found


def read_text(path: Path) -> str:
    """Return the text in a file; raises InvalidArgument if there is none."""
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidArgument(f"{path} cannot be read: {reason}.", hint="Name a text in UTF-8.", param="text") from None


@contextlib.contextmanager
def _loaded(checkpoint: Checkpoint, cpu_weights: CpuWeights) -> Iterator[list[Weights]]:
    """Give the weights in a list, which alone holds them: it is cleared on the engine thread."""
    worker = get_worker()
    import_on_worker("lib_mlx.models.loader")

    def load() -> list[Weights]:
        from lib_mlx.engine.device import set_up
        from lib_mlx.models.loader import load_weights

        set_up()
        return [load_weights(checkpoint, lambda _: None, lambda: False, cpu_weights)]

    weights = worker.run(load)
    try:
        yield weights
    finally:
        worker.run(weights.clear)
        worker.run(heap.release)


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


def _losses(model: list[Weights], piece: list[int]) -> list[float]:
    import mlx.core as mx

    found = mx.take_along_axis(_log_probabilities(model[0], piece), mx.array(piece[1:])[:, None], axis=-1)
    return cast("list[float]", (-found[:, 0]).tolist())


def _compare(
    model: list[Weights], reference: list[Weights], piece: list[int]
) -> list[tuple[float, float, float, float]]:
    """Return of each token: divergence, whether the likeliest is the same, the loss of both."""
    import mlx.core as mx

    own, other = (_log_probabilities(weights[0], piece) for weights in (model, reference))
    kl = (mx.exp(other) * (other - own)).sum(axis=-1)
    same = (own.argmax(axis=-1) == other.argmax(axis=-1)).astype(mx.float32)
    said = mx.array(piece[1:])[:, None]
    losses = [-mx.take_along_axis(array, said, axis=-1)[:, 0] for array in (own, other)]
    rows = mx.stack([kl, same, *losses], axis=1).tolist()
    return [(a, b, c, d) for a, b, c, d in cast("list[list[float]]", rows)]
