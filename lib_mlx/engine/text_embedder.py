"""Embeds texts for any thread: in chunks on the engine thread, between the steps of others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from lib_mlx.engine.embedding import CHUNK
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import Cancelled, UnsupportedFeature
from lib_mlx.models import sharding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lib_mlx.engine.embedding import Embedder, Embedding
    from lib_mlx.engine.preparation import RequestPreparer
    from lib_mlx.engine.scheduler import Scheduler

T = TypeVar("T")
_SUSPENDED_S = 0.1  # between two looks whether a model is still suspended


class TextEmbedder:
    """What `EngineModel.embed` does.

    Args:
        embedder: of the model.
        preparer: tokenises.
        lane: of the model's requests; changes of the network wait for embeddings as for those.
        resting: asked on the engine thread whether the model is suspended; raises ShuttingDown if it is unloaded.
    """

    def __init__(
        self, embedder: Embedder, preparer: RequestPreparer, lane: Scheduler, resting: Callable[[], bool]
    ) -> None:
        self._embedder = embedder
        self._preparer = preparer
        self._lane = lane
        self._resting = resting

    def embed(
        self, text: str | Sequence[int], *, truncate: bool, cancelled: Callable[[], bool]
    ) -> tuple[list[float], int]:
        """Return the vector of `text` and its number of tokens; see `EngineModel.embed`."""
        if sharding.ranks() > 1:
            raise UnsupportedFeature(
                "A model that runs on several hosts makes no embeddings.",
                hint="Serve a model of embeddings without --hosts.",
                param="model",
            )
        tokens = self._preparer.encode(text, truncate=truncate)
        embedding = self._evaluate(cancelled, self._begin)
        try:
            for at in range(0, len(tokens), CHUNK):
                self._evaluate(cancelled, self._embedder.take, embedding, tokens[at : at + CHUNK])
            return self._evaluate(cancelled, self._embedder.finish, embedding), len(tokens)
        finally:
            get_worker().run(self._end, embedding)

    def close(self) -> None:
        """Let go of the network. Engine thread only."""
        self._embedder.close()

    def _begin(self) -> Embedding:
        embedding = self._embedder.begin()
        self._lane.guests += 1
        return embedding

    def _end(self, embedding: Embedding) -> None:
        embedding.clear()
        self._lane.guests -= 1

    def _evaluate(self, cancelled: Callable[[], bool], work: Callable[..., T], *args: Any) -> T:
        """Call `work` on the engine thread, when the model is not suspended."""

        def attempt() -> tuple[T] | None:
            waits = self._resting() or (work == self._begin and self._lane.changing)
            return None if waits else (work(*args),)

        while not cancelled():
            done = get_worker().run(attempt)
            if done is not None:
                return done[0]
            time.sleep(_SUSPENDED_S)
        raise Cancelled("The request was cancelled.")
