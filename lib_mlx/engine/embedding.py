"""Vectors of texts: a model's hidden states, pooled. Engine thread only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lib_mlx.errors import UnsupportedFeature
from lib_mlx.models.kv_cache import new_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lib_mlx.models.pooling import Pooling

CHUNK = 256
"""Tokens at a time: what others' streams wait for."""


@dataclass
class Embedding:
    """One text under way."""

    cache: list[Any]
    tokens: int = 0
    pooled: Any = field(default=None, repr=False)

    def clear(self) -> None:
        """Let go of the arrays."""
        self.cache, self.pooled = [], None


class Embedder:
    """Embeds with one network.

    Args:
        network: mlx-lm's model, whose inner `model` gives hidden states.
        pooling: how to make one vector of them.
    """

    def __init__(self, network: Any, pooling: Pooling) -> None:
        self._network = network
        self._pooling = pooling

    def close(self) -> None:
        """Let go of the network."""
        self._network = None

    def begin(self) -> Embedding:
        """Return a text of no tokens yet; raises UnsupportedFeature if the network shows no hidden states."""
        if not callable(getattr(self._network, "model", None)):
            raise UnsupportedFeature("This model has no embeddings.", hint="Use another model.", param="model")
        return Embedding(new_cache(self._network))

    def take(self, embedding: Embedding, tokens: Sequence[int]) -> None:
        """Process the next tokens of a text."""
        states = self._network.model(mx.array([tokens]), cache=embedding.cache)[0].astype(mx.float32)
        match self._pooling.mode:
            case "mean":
                total = mx.sum(states, axis=0)
                embedding.pooled = total if embedding.pooled is None else embedding.pooled + total
            case "first":
                embedding.pooled = states[0] if embedding.pooled is None else embedding.pooled
            case "last":
                embedding.pooled = states[-1]
        embedding.tokens += len(tokens)
        mx.eval(embedding.pooled, [layer.state for layer in embedding.cache])

    def finish(self, embedding: Embedding) -> list[float]:
        """Return the vector of a text that has been processed."""
        vector = embedding.pooled / embedding.tokens if self._pooling.mode == "mean" else embedding.pooled
        if self._pooling.normalise:
            vector = vector / mx.maximum(mx.linalg.norm(vector), 1e-12)
        return [float(value) for value in vector.tolist()]
