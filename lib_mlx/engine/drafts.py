"""Guesses at what a model will say next, for `engine.speculation` to check. Engine thread only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import mlx.core as mx

from lib_mlx.models.kv_cache import new_cache
from lib_mlx.models.upstream import trim_prompt_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST, _SHORTEST = 4, 2  # tokens that must have stood before for what followed them to be a guess


class Draft(Protocol):
    """Guesses for one request."""

    @property
    def nbytes(self) -> int:
        """What its cache takes now."""

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return at most `count` tokens that may follow `tokens`, which begin as at the last call."""


class PromptLookup:
    """Guesses that what followed the last few tokens when they stood there before follows again.

    Saxena, Prompt Lookup Decoding (https://github.com/apoorvumang/prompt-lookup-decoding).
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}  # by some tokens: where what follows them begins, the last time
        self._known = 0

    @property
    def nbytes(self) -> int:
        """See `Draft`."""
        return 0

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """See `Draft`."""
        for end in range(max(self._known, 1), len(tokens)):
            for length in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._places[tuple(tokens[end - length : end])] = end
        self._known = max(self._known, len(tokens))
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            place = self._places.get(tuple(tokens[len(tokens) - length :]))
            if place is not None:
                return list(tokens[place : place + count])
        return []


class DraftModel:
    """Guesses what a smaller model says, which has the same tokens."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._cache = new_cache(network)
        self._held: list[int] = []  # what the cache has

    @property
    def nbytes(self) -> int:
        """See `Draft`."""
        return sum(layer.nbytes for layer in self._cache)

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """See `Draft`."""
        same = min(_agreement(self._held, tokens), len(tokens) - 1)
        trim_prompt_cache(self._cache, len(self._held) - same)
        self._held = list(tokens)
        guess = self._next(list(tokens[same:]))
        found = [guess]
        while len(found) < count:
            self._held.append(guess)
            guess = self._next([guess])
            found.append(guess)
        return found

    def _next(self, tokens: list[int]) -> int:
        for at in range(0, len(tokens), 512):
            logits = self._network(mx.array([tokens[at : at + 512]]), cache=self._cache)
            mx.eval([layer.state for layer in self._cache])
        return cast("int", logits[0, -1].argmax().item())


def _agreement(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens at the beginning of both are equal; the last few alone differ as a rule."""
    length = min(len(a), len(b))
    while a[:length] != b[:length]:
        length -= 1
    return length
