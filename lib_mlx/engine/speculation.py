"""Speculative decoding: several guessed tokens are checked at once, and those that are right are kept.

Leviathan et al., Fast Inference from Transformers via Speculative Decoding (arXiv:2211.17192), but stricter: a guess
counts only if the request's own sampler chooses it, so that tokens are those of ordinary decoding, whatever the seed,
the penalties or the grammar. Rows take turns: engine thread only.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from lib_mlx.engine.sampling import GREEDY
from lib_mlx.engine.serial import Row, SerialGenerator, Token
from lib_mlx.models.upstream import TokenBuffer, trim_prompt_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lib_mlx.engine.drafts import Draft


_FIRST = 2  # tokens guessed at once before anything is known
_LONGEST_PAUSE = 31  # tokens, after guesses that were all wrong


class _Course:
    """What is decided of one row and not told yet, and how far its guesses are to be trusted."""

    def __init__(self, draft: Draft, most: int) -> None:
        self.draft = draft
        self._most = most
        self._count = min(_FIRST, most)
        self._rest = self._pause = 0  # tokens until the next guess
        self.ready: deque[tuple[int, mx.array]] = deque()
        """Tokens with their log-probabilities. All but the last have joined the cache."""

    def guess(self, tokens: list[int], last: int, room: int) -> list[int]:
        """Return what may follow `tokens` and `last`, `room` tokens at most."""
        if self._rest > 0:
            self._rest -= 1
            return []
        count = min(self._count, room)
        return self.draft.propose([*tokens, last], count) if count > 0 else []

    def learn(self, guessed: int, right: int) -> None:
        """Guess more after what was right, and less, or for a while nothing, after what was wrong."""
        if not guessed:
            return
        self._count = min(self._most, 2 * self._count) if right == guessed else right + 1
        self._pause = 0 if right else min(_LONGEST_PAUSE, 2 * self._pause + 1)
        self._rest = self._pause


class SpeculativeGenerator(SerialGenerator):
    """A `SerialGenerator` that checks guesses.

    Args:
        network: mlx-lm's model, whose cache can be cut.
        new_draft: makes the guesses of a row.
        count: the most tokens to guess at once.
    """

    def __init__(self, network: Any, new_draft: Callable[[], Draft], count: int) -> None:
        super().__init__(network)
        self._new_draft = new_draft
        self._count = count
        self._courses: dict[int, _Course] = {}
        self.guessed = self.right = 0
        """Tokens of all rows so far."""

    @property
    def prompt_cache_nbytes(self) -> int:
        """See `SerialGenerator`; with what the drafts' caches take."""
        return super().prompt_cache_nbytes + sum(course.draft.nbytes for course in self._courses.values())

    def remove(self, uids: Iterable[int], return_prompt_caches: bool = False) -> dict[int, tuple[list[Any], list[int]]]:
        """See `SerialGenerator`."""
        uids = list(uids)
        for uid in uids:
            self._courses.pop(uid, None)
        return super().remove(uids, return_prompt_caches)

    def _decode(self, row: Row, _inputs: mx.array) -> Token:
        course = self._courses[row.uid]
        token, logprobs = course.ready.popleft()
        row.made += 1
        reason = "stop" if row.matcher.advance(token) else "length" if row.made >= row.max_tokens else None
        if reason is not None:
            del self._rows[row.uid], self._courses[row.uid]
            return Token(row.uid, token, logprobs, reason, row.cache, row.tokens)
        if not course.ready:
            self._extend(row, course, token)
        return Token(row.uid, token, logprobs)

    def _compute(self, row: Row, inputs: mx.array) -> None:
        """Take the last token of the prompt in."""
        course = self._courses[row.uid] = _Course(self._new_draft(), self._count)
        token = cast("int", inputs.item())
        self._extend(row, course, token)
        row.next = inputs  # it decodes from now on

    def _extend(self, row: Row, course: _Course, token: int) -> None:
        """Have `token` and what is guessed behind it join the cache; keep what is right, and decide one more."""
        guesses = course.guess(row.tokens, token, row.max_tokens - row.made - 1)
        logits = self._network(mx.array([[token, *guesses]]), cache=row.cache)[0]
        decided = self._decide(row, token, guesses, logits)
        kept = len(decided) - 1
        trim_prompt_cache(row.cache, len(guesses) - kept)
        mx.eval([layer.state for layer in row.cache])
        row.tokens += [token, *guesses[:kept]]
        course.ready.extend(decided)
        course.learn(len(guesses), kept)
        self.guessed += len(guesses)
        self.right += kept

    def _decide(self, row: Row, token: int, guesses: list[int], logits: mx.array) -> list[tuple[int, mx.array]]:
        """Return the tokens behind `token`: the guesses as far as they are right, and one more."""
        if row.sampler is GREEDY and not row.processors:
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            chosen = cast("list[int]", logprobs.argmax(axis=-1).tolist())
            wrong = (at for at, (one, guess) in enumerate(zip(chosen, guesses, strict=False)) if one != guess)
            count = next(wrong, len(guesses)) + 1
            return [(chosen[at], logprobs[at]) for at in range(count)]
        decided: list[tuple[int, mx.array]] = []
        last = token
        for at in range(len(guesses) + 1):
            last, logprobs = self._sample(row, last, logits[at : at + 1])
            decided.append((last, logprobs))
            if at < len(guesses) and last != guesses[at]:
                break
        return decided

    @staticmethod
    def _sample(row: Row, last: int, logits: mx.array) -> tuple[int, mx.array]:
        """Choose the token behind `last`, of which processors have seen all before it."""
        if row.processors:
            row.context = row.context or TokenBuffer(row.tokens)
            context = row.context.update_and_fetch(mx.array([last]))
            for process in row.processors:
                logits = process(context, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return cast("int", row.sampler(logprobs).item()), logprobs[0]
