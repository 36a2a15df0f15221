"""How likely each token of an answer was. Engine thread only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from lib_mlx.engine.output_parser import ANSWER
from lib_mlx.generation import Delta, SampledToken, TextDelta, TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class LogprobCollector:
    """Gathers the tokens of one answer's text and hands them out with the text they made.

    Args:
        top: how many of the likeliest tokens to report at each place.
        bytes_of: the text of a token.
    """

    def __init__(self, top: int, bytes_of: Callable[[int], bytes]) -> None:
        self._top = top
        self._bytes_of = bytes_of
        self._pending: list[SampledToken] = []

    def take(self, token: int, logprobs: mx.array, before: str, after: str) -> None:
        """Note a token; `logprobs` are those of the whole vocabulary, the states the parser's around it.

        Reasoning, tool calls and the markers around them are no text of the answer.
        """
        if before == after == ANSWER:
            self._pending.append(self._sampled(token, logprobs))
        elif after != ANSWER:
            self._pending.clear()

    def attach(self, events: Sequence[Delta]) -> list[Delta]:
        """Return `events`, the last piece of text among them with the tokens noted since the one before."""
        attached = list(events)
        for index in reversed(range(len(attached))):
            event = attached[index]
            if isinstance(event, TextDelta):
                attached[index] = TextDelta(event.text, tuple(self._pending))
                self._pending.clear()
                break
        return attached

    def _sampled(self, token: int, logprobs: mx.array) -> SampledToken:
        values = np.array(logprobs.astype(mx.float32))
        likeliest = np.argpartition(values, -self._top)[-self._top :] if self._top else np.empty(0, np.int64)
        ranked = likeliest[np.argsort(-values[likeliest], kind="stable")]
        # What a grammar forbids has no probability at all; JSON has no infinity, and nobody asked for it.
        top = tuple(self._entry(int(index), values) for index in ranked if np.isfinite(values[index]))
        return SampledToken(self._entry(token, values), top)

    def _entry(self, token: int, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> TokenLogprob:
        return TokenLogprob(token, self._bytes_of(token), float(values[token]))
