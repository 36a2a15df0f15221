"""Reasoning of a bounded length: after so many tokens the model can only close it. Engine thread only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_mlx.engine.output_parser import REASONING, TOOL

if TYPE_CHECKING:
    from lib_mlx.engine.detokenizer import Detokenizer
    from lib_mlx.engine.output_parser import OutputParser


@dataclass(frozen=True)
class ReasoningLimit:
    """How many tokens there may be between the markers of reasoning, all of it together, and what ends it."""

    tokens: int
    close_token: int


class ReasoningLimiter:
    """The logits processor of one request: leaves only the end of reasoning once the limit is reached.

    Reads the tokens as the answer's own parser does, with a `parser` and a `detokenizer` of its own, so that both
    agree on what reasoning is: a tool call that begins inside it, for example, is not.
    """

    def __init__(
        self,
        limit: ReasoningLimit,
        *,
        parser: OutputParser,
        detokenizer: Detokenizer,
        hidden: frozenset[int],
        prompt_length: int,
    ) -> None:
        self._left = limit.tokens
        self._close = limit.close_token
        self._parser = parser
        self._detokenizer = detokenizer
        self._hidden = hidden
        self._read = prompt_length

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """Mask all but the end of reasoning if the limit has been reached in it.

        `tokens` are the prompt's and the answer's so far. They are read only when there are enough of them to reach
        the limit: reading waits for the token that is being computed. Asking twice changes nothing.
        """
        import mlx.core as mx

        if tokens.shape[0] - self._read < self._left:
            return logits
        for token in tokens[self._read :].tolist():
            self._take(token)
        self._read = tokens.shape[0]
        if self._left > 0 or self._parser.state != REASONING:
            return logits
        close = logits[:, self._close : self._close + 1]
        others = mx.arange(logits.shape[-1]) != self._close
        # What a grammar forbids is not forced: the text only looks like reasoning then.
        return mx.where(others & (close > -mx.inf), -mx.inf, logits)

    def _take(self, token: int) -> None:
        parser = self._parser
        before = parser.state
        if token not in self._hidden or before == TOOL:
            parser.feed(self._detokenizer.feed(token))
        if before == parser.state == REASONING:
            self._left -= 1
