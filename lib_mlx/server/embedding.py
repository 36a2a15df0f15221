"""Texts to vectors on behalf of an HTTP request, for every dialect."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import Cancelled, InvalidArgument
from lib_mlx.server.http import watched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from lib_mlx.server.state import ServerState


async def embed_all(
    request: Request,
    state: ServerState,
    model: str | None,
    inputs: Sequence[Any],
    dimensions: int | None = None,
    *,
    keep_alive_s: float | None = None,
    truncate: bool = False,
) -> tuple[str, list[list[float]], int]:
    """Return the model's name, a vector for each text (or run of tokens) of `inputs`, and their tokens in total.

    Args:
        request: given up as soon as its client goes away.
        state: the server's.
        model: its name.
        inputs: what to embed.
        dimensions: keep so many of each vector's, and give it length one again.
        keep_alive_s: when to unload the model afterwards.
        truncate: cut texts that are longer than the context.

    Raises:
        InvalidArgument: the vectors have fewer dimensions.
        LibMlxError: as `EngineModel.embed` and `Sessions.lease`.
    """
    gone = threading.Event()
    async with state.sessions.lease(model) as lease, watched(request, gone.set):
        vectors, tokens = [], 0
        for text in inputs:
            vector, count = await state.sessions.embed(lease.engine, text, truncate=truncate, cancelled=gone.is_set)
            vectors.append(_shortened(vector, dimensions))
            tokens += count
        if gone.is_set():
            raise Cancelled("The client went away.")
        lease.keep_alive_s = keep_alive_s
        return lease.id, vectors, tokens


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise InvalidArgument(
            f"This model's vectors have {len(vector)} dimensions.", hint="Ask for no more.", param="dimensions"
        )
    kept = vector[:dimensions]
    length = math.sqrt(sum(value * value for value in kept)) or 1.0
    return [value / length for value in kept]
