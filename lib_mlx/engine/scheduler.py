"""Continuous batching of one model's requests. Everything here runs on the engine thread, unless it says otherwise.

mlx-lm's `BatchGenerator` does one decode step for all rows, then at most one chunk of prefill, per call; a
request that is cancelled leaves between two calls, wherever it stands.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lib_mlx.engine.output_parser import REASONING, OutputParser
from lib_mlx.engine.sampling import GREEDY, make_processors, make_sampler
from lib_mlx.errors import Internal, LibMlxError
from lib_mlx.generation import Failed, Finished, FinishReason, GenerationEvent, Timings, Usage
from lib_mlx.models.upstream import BatchGenerator, StopSequences

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.engine.detokenizer import Detokenizer
    from lib_mlx.engine.event_stream import Batch, EventStream
    from lib_mlx.engine.output_parser import Opening, OutputFormat
    from lib_mlx.engine.sampling import Processor, ResolvedSampling, Sampler

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
    detokenizer: Detokenizer


class Job:
    """One request under way. `cancel` may be called from any thread; all else belongs to the engine thread."""

    def __init__(self, request: PreparedRequest, stream: EventStream) -> None:
        self.request = request
        self.stream = stream
        self.parser = OutputParser(
            request.output_format, stop=request.stop, tools=request.tools, opening=request.opening
        )
        self.error: LibMlxError | None = None
        self.done = False
        self.completion = 0
        self.reasoning = 0
        self.submitted = time.perf_counter()
        self.started: float | None = None
        self.first_token: float | None = None

    def cancel(self, error: LibMlxError) -> None:
        """End the request at the next step with `Failed(error)`. Idempotent; no effect once it is done."""
        if self.error is None:
            self.error = error

    def usage(self) -> Usage:
        """Return the token counts so far."""
        return Usage(len(self.request.prompt), 0, self.completion, self.reasoning)

    def timings(self) -> Timings:
        """Return the durations so far."""
        now = time.perf_counter()
        started = self.started if self.started is not None else now
        first = self.first_token if self.first_token is not None else now
        return Timings(
            queue=started - self.submitted, prefill=first - started, decode=now - first, ttft=first - self.submitted
        )


class Scheduler:
    """The lane of one loaded model.

    Args:
        network: mlx-lm's model.
        eos: end tokens.
        max_rows: rows decoded together at most; the rest wait in order of arrival.
        prefill_chunk: prompt tokens per step: the bound on how long a new prompt delays running streams.
    """

    def __init__(self, network: Any, eos: frozenset[int], *, max_rows: int = 32, prefill_chunk: int = 512) -> None:
        self._network = network
        self._eos = StopSequences([(token,) for token in sorted(eos)])
        self._max_rows = max_rows
        self._prefill_chunk = prefill_chunk
        self._jobs: dict[int, Job] = {}
        self._rejected: list[Job] = []
        self.suspended = False
        self._batch = self._new_batch()

    @property
    def busy(self) -> bool:
        """Whether there is a request to advance, or one to end."""
        if self.suspended:
            return bool(self._rejected) or any(job.error for job in self._jobs.values())
        return bool(self._jobs or self._rejected)

    @property
    def depth(self) -> int:
        """Requests under way, running and waiting."""
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Take `job` in, to be prefilled when its turn comes."""
        request = job.request
        try:
            sampler = _guarded_sampler(job, make_sampler(request.sampling))
            processors = [
                _guarded_processor(job, processor)
                for processor in make_processors(request.sampling, len(request.prompt))
            ]
            (uid,) = self._batch.insert(
                [list(request.prompt)],
                max_tokens=[request.max_tokens],
                samplers=[sampler],
                logits_processors=[processors],
                stop_sequences=[self._eos],
            )
        except Exception as error:  # noqa: BLE001 - fails this request only
            job.cancel(_internal(error))
            self._rejected.append(job)
            return
        self._jobs[uid] = job

    def fail_all(self, error: LibMlxError) -> None:
        """End every request with `error` at the next step."""
        for job in self._jobs.values():
            job.cancel(error)

    def step(self) -> list[tuple[EventStream, Batch]]:
        """Advance every row by one token and one waiting prompt by one chunk. Never raises."""
        try:
            return self._step()
        except Exception as error:
            log.exception("the model failed; its requests end, the engine goes on")
            self.fail_all(_internal(error))
            self._batch = self._new_batch()
            return self._end_failed(remove=False)

    def _step(self) -> list[tuple[EventStream, Batch]]:
        out = self._end_failed()
        if not self._jobs or self.suspended:
            return out
        begun = time.perf_counter()
        prompts, responses = self._batch.next()
        for prompt in prompts:
            job = self._jobs[prompt.uid]
            if job.started is None:
                job.started = begun
        left_early = []
        for response in responses:
            job = self._jobs[response.uid]
            events = self._guarded_advance(job, response.token, response.finish_reason)
            if events:
                out.append((job.stream, events))
            if job.done:
                del self._jobs[response.uid]
                if response.finish_reason is None:
                    left_early.append(response.uid)
        if left_early:
            self._batch.remove(left_early)
        return out

    def _guarded_advance(self, job: Job, token: int, ended: str | None) -> Batch:
        try:
            return self._advance(job, token, ended)
        except Exception as error:
            log.exception("the output of a request could not be processed")
            job.done = True
            return [Failed(_internal(error), job.usage())]

    def _advance(self, job: Job, token: int, ended: str | None) -> Batch:
        if job.error is not None:  # its sampler or a processor failed; it ends at the next step
            return []
        if job.first_token is None:
            job.first_token = time.perf_counter()
        parser = job.parser
        before = parser.state
        job.completion += 1
        events: list[GenerationEvent] = []
        if ended != "stop":  # the end token has no text
            events += parser.feed(job.request.detokenizer.feed(token))
        if REASONING in (before, parser.state):
            job.reasoning += 1
        one_call_wanted = bool(parser.calls) and not job.request.parallel_tool_calls
        if ended is None and not parser.stopped and not one_call_wanted:
            return events
        if not one_call_wanted:
            events += parser.feed(job.request.detokenizer.finish())
            events += parser.finish()
        job.done = True
        reason: FinishReason = "length" if ended == "length" and not parser.stopped else "stop"
        if parser.calls and reason == "stop":
            reason = "tool_calls"
        events.append(Finished(reason, job.usage(), job.timings()))
        return events

    def _end_failed(self, *, remove: bool = True) -> list[tuple[EventStream, Batch]]:
        """Take out the requests that were cancelled or failed, and tell their streams."""
        ended = {uid: job for uid, job in self._jobs.items() if job.error is not None}
        if ended and remove:
            self._batch.remove(list(ended))
        for uid in ended:
            del self._jobs[uid]
        out: list[tuple[EventStream, Batch]] = []
        for job in [*ended.values(), *self._rejected]:
            job.done = True
            if job.error is not None:
                out.append((job.stream, [Failed(job.error, job.usage())]))
        self._rejected.clear()
        return out

    def _new_batch(self) -> Any:
        return BatchGenerator(
            self._network,
            completion_batch_size=self._max_rows,
            prefill_batch_size=1,
            prefill_step_size=self._prefill_chunk,
            stream=mx.default_stream(mx.default_device()),
        )


def _internal(error: Exception) -> LibMlxError:
    return Internal(f"Generation failed: {type(error).__name__}: {error}.", hint="Please report this.")


def _guarded_sampler(job: Job, sampler: Sampler) -> Sampler:
    if sampler is GREEDY:  # shared by all greedy rows, so that a batch samples in one call
        return sampler

    def guarded(logprobs: mx.array) -> mx.array:
        return _or_fail(job, lambda: sampler(logprobs), lambda: mx.argmax(logprobs, axis=-1))

    return guarded


def _guarded_processor(job: Job, processor: Processor) -> Processor:
    def guarded(tokens: mx.array, logits: mx.array) -> mx.array:
        return _or_fail(job, lambda: processor(tokens, logits), lambda: logits)

    return guarded


def _or_fail(job: Job, work: Callable[[], mx.array], otherwise: Callable[[], mx.array]) -> mx.array:
    """Run a request's own part of the step; if it raises, that request fails and its neighbours do not."""
    if job.error is not None:
        return otherwise()
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's
        job.cancel(_internal(error))
        return otherwise()
