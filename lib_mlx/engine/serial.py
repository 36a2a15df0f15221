"""Generation without batching, for models whose caches cannot be merged. Engine thread only.

Has the part of mlx-lm's `BatchGenerator` that the scheduler uses, and its order of work: per call one token for each
row that decodes, then one chunk for each prompt. Rows take turns, so none waits for another to end.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from lib_mlx.models.upstream import TokenBuffer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lib_mlx.engine.sampling import Processor, Sampler


@dataclass(frozen=True)
class PromptProgress:
    """What `BatchGenerator` reports of a prompt: a segment of it has been processed, or all of it."""

    uid: int
    progress: tuple[int, int]
    """Tokens processed and in all."""
    end_of_segment: bool
    end_of_prompt: bool


@dataclass(frozen=True)
class Token:
    """What `BatchGenerator` reports of a row; the last three are set with its last token."""

    uid: int
    token: int
    logprobs: mx.array
    finish_reason: str | None = None
    prompt_cache: list[Any] | None = None
    all_tokens: list[int] | None = None


@dataclass(eq=False)
class Row:
    """One request."""

    uid: int
    segments: list[list[int]]
    """What is left of the prompt; the very last token makes the first one of the answer."""
    total: int
    """Tokens of the prompt that were to be processed."""
    max_tokens: int
    cache: list[Any]
    tokens: list[int]
    """What the cache holds."""
    sampler: Sampler
    processors: Sequence[Processor]
    matcher: Any
    context: TokenBuffer | None = None
    """What processors see, from the first token on."""
    made: int = 0
    next: mx.array | None = None
    """The token that is being computed."""
    logprobs: mx.array = field(default_factory=lambda: mx.array([]))


class SerialGenerator:
    """See the module. `prefill_step_size` is the most prompt tokens processed per prompt and call."""

    def __init__(self, network: Any) -> None:
        self.prefill_step_size = 512
        self._network = network
        self._rows: dict[int, Row] = {}
        self._uids = itertools.count()

    @property
    def prompt_cache_nbytes(self) -> int:
        """What the caches of all rows take."""
        return sum(layer.nbytes for row in self._rows.values() for layer in row.cache)

    def insert_segments(
        self,
        segments: Sequence[list[list[int]]],
        max_tokens: Sequence[int],
        caches: Sequence[list[Any]],
        all_tokens: Sequence[list[int]],
        samplers: Sequence[Sampler],
        logits_processors: Sequence[Sequence[Processor]],
        stop_sequences: Sequence[Any],
    ) -> list[int]:
        """Take rows in; the arguments have one entry per row. Returns their ids."""
        rows = zip(segments, max_tokens, caches, all_tokens, samplers, logits_processors, stop_sequences, strict=True)
        uids = []
        for parts, limit, cache, tokens, sampler, processors, stop in rows:
            left = [list(part) for part in parts if part]
            last = left[-1].pop()
            row = Row(
                next(self._uids),
                [*(part for part in left if part), [last]],
                sum(map(len, parts)),
                limit,
                cache,
                list(tokens),
                sampler,
                processors,
                stop.matcher(),
            )
            self._rows[row.uid] = row
            uids.append(row.uid)
        return uids

    def next(self) -> tuple[list[PromptProgress], list[Token]]:
        """Advance every row; return what happened to prompts and which tokens were made."""
        made = [self._decode(row, row.next) for row in [*self._rows.values()] if row.next is not None]
        progress = [self._prefill(row) for row in self._rows.values() if row.next is None]
        return progress, made

    def extract_cache(self, uids: Iterable[int]) -> dict[int, tuple[list[Any], list[int]]]:
        """Return the caches of rows as they are now, and the tokens they hold."""
        rows = [self._rows[uid] for uid in uids if uid in self._rows]
        return {row.uid: (copy.deepcopy(row.cache), list(row.tokens)) for row in rows}

    def remove(self, uids: Iterable[int], return_prompt_caches: bool = False) -> dict[int, tuple[list[Any], list[int]]]:
        """Take rows out; return their caches if asked to."""
        rows = [row for uid in uids if (row := self._rows.pop(uid, None))]
        return {row.uid: (row.cache, row.tokens) for row in rows} if return_prompt_caches else {}

    def _prefill(self, row: Row) -> PromptProgress:
        if len(row.segments) == 1:
            self._compute(row, mx.array(row.segments.pop()))
            return PromptProgress(row.uid, (row.total, row.total), end_of_segment=True, end_of_prompt=True)
        segment = row.segments[0]
        chunk, row.segments[0] = segment[: self.prefill_step_size], segment[self.prefill_step_size :]
        self._network(mx.array([chunk]), cache=row.cache)
        mx.eval([layer.state for layer in row.cache])
        row.tokens += chunk
        if not row.segments[0]:
            row.segments.pop(0)
        left = sum(map(len, row.segments))
        progress = row.total - left, row.total
        return PromptProgress(row.uid, progress, end_of_segment=len(chunk) == len(segment), end_of_prompt=False)

    def _decode(self, row: Row, inputs: mx.array) -> Token:
        logprobs = row.logprobs
        self._compute(row, inputs)
        token = row.tokens[-1]
        row.made += 1
        reason = "stop" if row.matcher.advance(token) else "length" if row.made >= row.max_tokens else None
        if reason is None:
            return Token(row.uid, token, logprobs)
        del self._rows[row.uid]
        return Token(row.uid, token, logprobs, reason, row.cache, row.tokens)

    def _compute(self, row: Row, inputs: mx.array) -> None:
        """Start computing the token after `inputs`, which joins the cache."""
        logits = self._network(inputs[None], cache=row.cache)[:, -1, :]
        if row.processors:
            row.context = row.context or TokenBuffer(row.tokens)
            context = row.context.update_and_fetch(inputs)
            for process in row.processors:
                logits = process(context, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        row.next, row.logprobs = row.sampler(logprobs), logprobs[0]
        mx.async_eval(row.next, row.logprobs)  # type: ignore[no-untyped-call]
        row.tokens.append(cast("int", inputs.item()))
