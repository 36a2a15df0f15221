"""One request under way: from tokens to events, with its own errors kept to itself.

`cancel` and `usage` may be called from any thread; all else belongs to the engine thread.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from lib_mlx.engine.grammar import GrammarProcessor
from lib_mlx.engine.logprobs import LogprobCollector
from lib_mlx.engine.output_parser import REASONING, TOOL, OutputParser
from lib_mlx.engine.reasoning_limit import ReasoningLimiter
from lib_mlx.engine.sampling import GREEDY, make_processors, make_sampler
from lib_mlx.errors import EngineDied, Internal, LibMlxError, ShuttingDown
from lib_mlx.generation import Delta, Failed, Finished, FinishReason, Timings, ToolCallDelta, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.engine.detokenizer import TokenText
    from lib_mlx.engine.event_stream import Batch, EventStream
    from lib_mlx.engine.grammar import Grammar
    from lib_mlx.engine.output_parser import Opening, OutputFormat
    from lib_mlx.engine.reasoning_limit import ReasoningLimit
    from lib_mlx.engine.sampling import Processor, ResolvedSampling, Sampler
    from lib_mlx.models.media_prompt import PromptMedia
    from lib_mlx.models.vision_network import MediaPlan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedRequest:
    """A request that was checked and tokenised: nothing in it can be refused any more."""

    prompt: list[int]
    max_tokens: int
    sampling: ResolvedSampling
    stop: tuple[str, ...]
    tools: list[dict[str, Any]] | None
    parallel_tool_calls: bool
    output_format: OutputFormat
    opening: Opening
    text: TokenText
    allowed_tools: frozenset[str] | None = None
    """The only tools that may be called: a call of another is text."""
    hidden: frozenset[int] = frozenset()
    """Control tokens: they have no text, but inside a tool call, whose parser may need them."""
    grammar: Grammar | None = None
    reasoning_limit: ReasoningLimit | None = None
    logprobs: int | None = None
    cache_salt: str = ""
    client: str = ""
    boundaries: tuple[int, ...] = ()
    """Where the prompt's messages end, if its cache can be reused only as it was at such a place."""
    media: PromptMedia | None = None
    """The images; in `prompt`, negative numbers stand for their tokens."""


class Job:
    """A `PreparedRequest` and how far it has come.

    Args:
        request: what to generate.
        stream: where the events go.
        leader: the job of the same request, if this is one of several answers to it: the prompt is processed once.
        choice: this answer's number among them; its random numbers depend on it.
    """

    def __init__(
        self, request: PreparedRequest, stream: EventStream, *, leader: Job | None = None, choice: int = 0
    ) -> None:
        self.request = request
        self.stream = stream
        self.leader = leader
        self.prompt = np.asarray(request.prompt, np.int32)
        self.plan: MediaPlan | None = None
        """What the network is told of its images, from its turn on."""
        self.prefilled = False
        """Whether its prompt has been processed, but for the last token."""
        self.followed = False
        """Whether other jobs wait for this one's prompt."""
        self.error: LibMlxError | None = None
        self.done = False
        """Whether the terminal event has been made."""
        self.cached = 0
        """Prompt tokens that came from the prefix cache."""
        self.made: list[int] = []
        """The tokens so far."""
        self._parser = self._new_parser()
        self._detokenizer = request.text.detokenizer()
        self._logprobs = None if request.logprobs is None else LogprobCollector(request.logprobs, request.text.bytes_of)
        self._sampling = replace(request.sampling, seed=(request.sampling.seed + choice) % (1 << 64))
        self._reasoning = 0
        self._submitted = time.perf_counter()
        self._started: float | None = None
        self._first_token: float | None = None

    @property
    def age(self) -> float:
        """Seconds since it was submitted."""
        return time.perf_counter() - self._submitted

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.request.prompt) + len(self.made)

    @property
    def completion(self) -> int:
        """Tokens made so far."""
        return len(self.made)

    @property
    def held_back(self) -> bool:
        """Whether it waits for its leader to process the prompt they share."""
        leader = self.leader
        return leader is not None and not leader.prefilled and not leader.done and leader.error is None

    def cancel(self, error: LibMlxError) -> None:
        """End the request at the next step with `Failed(error)`. Idempotent; no effect once it is done."""
        if self.error is None:
            self.error = error

    def start(self, cached: int) -> None:
        """Its prompt's turn has come, with `cached` tokens known already. Again after an interruption: no news."""
        if self._started is None:
            self._started, self.cached = time.perf_counter(), cached

    def advance(self, token: int, logprobs: mx.array, ended: str | None) -> Batch:
        """Take one token in and return the events it makes; `ended` is the generator's reason if it is the last.

        Never raises: what goes wrong with this request's text ends this request.
        """
        if self.error is not None:  # its sampler or a processor failed; it ends at the next step
            return []
        try:
            return self._advance(token, logprobs, ended)
        except BaseException as error:  # a panic in Rust is no Exception
            log.exception("the output of a request could not be processed")
            self.cancel(internal_error(error))
            return [self.fail()]

    def fail(self) -> Failed:
        """Return the terminal event of a request that was cancelled or failed."""
        self.done = True
        return Failed(self.error or Internal("The request failed without a reason."), self.usage())

    def sampler(self) -> Sampler:
        """Return the request's sampler; if it raises, the request fails and its neighbours do not."""
        sample = make_sampler(self._sampling, len(self.made))
        if sample is GREEDY:  # shared by all greedy rows, so that a batch samples in one call
            return sample
        return lambda logprobs: self._guard(lambda: sample(logprobs), lambda: mx.argmax(logprobs, axis=-1))

    def processors(self) -> list[Processor]:
        """Return the request's logits processors, guarded likewise.

        New ones each time: those of before an interruption may have seen guesses that were not told.
        """
        request = self.request

        def guarded(process: Processor) -> Processor:
            return lambda tokens, logits: self._guard(lambda: process(seen(tokens), logits), lambda: logits)

        def seen(tokens: mx.array) -> mx.array:
            if request.media is None:
                return tokens
            return mx.where(tokens < 0, mx.array(request.media.stand_in, tokens.dtype), tokens)

        processors = make_processors(self._sampling, len(request.prompt))
        if request.grammar is not None:
            processors.append(GrammarProcessor(request.grammar, len(request.prompt)))
        if request.reasoning_limit is not None:  # last: it goes before what a grammar leaves
            processors.append(self._new_limiter(request.reasoning_limit))
        return [guarded(process) for process in processors]

    def _new_parser(self) -> OutputParser:
        request = self.request
        return OutputParser(
            request.output_format,
            stop=request.stop,
            tools=request.tools,
            opening=request.opening,
            allowed_tools=request.allowed_tools,
        )

    def _new_limiter(self, limit: ReasoningLimit) -> ReasoningLimiter:
        request = self.request
        return ReasoningLimiter(
            limit,
            parser=self._new_parser(),
            detokenizer=request.text.detokenizer(),
            hidden=request.hidden,
            prompt_length=len(request.prompt),
        )

    def _guard(self, work: Callable[[], mx.array], otherwise: Callable[[], mx.array]) -> mx.array:
        if self.error is not None:
            return otherwise()
        try:
            return work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, a panic in Rust too, it is this request's
            self.cancel(internal_error(error))
            return otherwise()

    def _advance(self, token: int, logprobs: mx.array, ended: str | None) -> Batch:
        if self._first_token is None:
            self._first_token = time.perf_counter()
        parser = self._parser
        before = parser.state
        self.made.append(token)
        deltas: list[Delta] = []
        hidden = token in self.request.hidden and before != TOOL
        if ended != "stop" and not hidden:  # the end token has no text
            deltas += parser.feed(self._detokenizer.feed(token))
            if self._logprobs is not None:
                self._logprobs.take(token, logprobs, before, parser.state)
        if REASONING in (before, parser.state):
            self._reasoning += 1
        one_call_wanted = bool(parser.calls) and not self.request.parallel_tool_calls
        if ended is None and not parser.stopped and not one_call_wanted:
            return [*self._with_logprobs(deltas)]
        if not one_call_wanted:
            deltas += parser.feed(self._detokenizer.finish())
            deltas += parser.finish()
        if not self.request.parallel_tool_calls:
            deltas = _up_to_first_call(deltas)
        self.done = True
        reason: FinishReason = "length" if ended == "length" and not parser.stopped else "stop"
        if parser.calls and reason == "stop":
            reason = "tool_calls"
        return [*self._with_logprobs(deltas), Finished(reason, self.usage(), self._timings(), parser.stop)]

    def _with_logprobs(self, deltas: list[Delta]) -> list[Delta]:
        return deltas if self._logprobs is None else self._logprobs.attach(deltas)

    def usage(self) -> Usage:
        """Return the token counts so far. Any thread."""
        return Usage(len(self.request.prompt), self.cached, len(self.made), self._reasoning)

    def _timings(self) -> Timings:
        now = time.perf_counter()
        started = now if self._started is None else self._started
        first = now if self._first_token is None else self._first_token
        return Timings(
            queue=started - self._submitted,
            prefill=first - started,
            decode=now - first,
            ttft=first - self._submitted,
        )


def _up_to_first_call(deltas: list[Delta]) -> list[Delta]:
    """One block of a model's text can hold several calls."""
    first = next((index for index, delta in enumerate(deltas) if isinstance(delta, ToolCallDelta)), len(deltas))
    return deltas[: first + 1]


def unloading() -> ShuttingDown:
    """Return the error of requests to a model that is going."""
    return ShuttingDown("The model is being unloaded.", hint="Load it again.")


def internal_error(error: BaseException) -> LibMlxError:
    """Return a defect, or the end of what the model runs on, as the error a client sees."""
    if isinstance(error, EngineDied):
        return error.copy()
    return Internal(f"Generation failed: {type(error).__name__}: {error}.", hint="Please report this.")
