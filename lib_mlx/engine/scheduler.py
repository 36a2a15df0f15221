"""Continuous batching of one model's requests. Everything here runs on the engine thread.

mlx-lm's `BatchGenerator` does one decode step for all rows, then at most one chunk of prefill, per call. What it
is given, and when, is decided here: prompts share the chunk, short ones go first, and old ones are not left
behind. A request that is cancelled leaves between two calls, wherever it stands; its work is kept.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lib_mlx.engine.job import Job, internal_error
from lib_mlx.engine.prefix_cache import PrefixCache
from lib_mlx.models.upstream import BatchGenerator, StopSequences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lib_mlx.engine.event_stream import Batch, EventStream
    from lib_mlx.engine.prefix_cache import KVCache
    from lib_mlx.errors import LibMlxError

log = logging.getLogger(__name__)

_PREFILLS = 4  # prompts processed side by side
_AGEING = 8.0  # chunks of prompt that one second of waiting makes up for


class Scheduler:
    """The lane of one loaded model.

    Args:
        network: mlx-lm's model.
        eos: end tokens.
        max_rows: rows decoded together at most; the rest wait.
        prefill_chunk: prompt tokens per step, over all prompts: the bound on how long they delay running streams.
        prefix_bytes: bound on what is kept of past requests.
    """

    def __init__(
        self,
        network: Any,
        eos: frozenset[int],
        *,
        max_rows: int = 32,
        prefill_chunk: int = 512,
        prefix_bytes: int = 0,
    ) -> None:
        self.suspended = False
        self.prefixes = PrefixCache(prefix_bytes)
        self._network = network
        self._eos = StopSequences([(token,) for token in sorted(eos)])
        self._max_rows = max_rows
        self._prefill_chunk = prefill_chunk
        self._waiting: list[Job] = []
        self._prefilling: set[int] = set()  # uids whose first token has not come
        self._jobs: dict[int, Job] = {}  # by uid, those given to the generator
        self._batch = self._new_batch()

    @property
    def busy(self) -> bool:
        """Whether there is a request to advance, or one to end."""
        if self.suspended:
            return any(job.error for job in self._everyone())
        return bool(self._jobs or self._waiting)

    def add(self, job: Job) -> None:
        """Take `job` in, to be prefilled when its turn comes."""
        self._waiting.append(job)

    def fail_all(self, error: LibMlxError) -> None:
        """End every request with `error` at the next step."""
        for job in self._everyone():
            job.cancel(error)

    def step(self) -> list[tuple[EventStream, Batch]]:
        """Advance every row by one token and the prompts by one chunk. Never raises."""
        out: list[tuple[EventStream, Batch]] = []
        try:
            self._step(out)
        except Exception as error:
            log.exception("the model failed; its requests end, the engine goes on")
            for job in self._jobs.values():
                job.cancel(internal_error(error))
                out.append(_failure(job))
            self._jobs.clear()
            self._prefilling.clear()
            self._batch = self._new_batch()
        return out

    def close(self) -> None:
        """Let go of the model and of all that was kept for it. The lane is of no use afterwards."""
        self._network = self._batch = None
        self.prefixes.clear()

    def _step(self, out: list[tuple[EventStream, Batch]]) -> None:
        self._end_failed(out)
        if self.suspended:
            return
        self._admit(out)
        if not self._jobs:
            return
        # The chunk is shared: neither does a long prompt hold up a short one, nor do many hold up the streams.
        self._batch.prefill_step_size = max(16, self._prefill_chunk // max(1, len(self._prefilling)))
        _, responses = self._batch.next()
        left_early = []
        for response in responses:
            job = self._jobs[response.uid]
            self._prefilling.discard(response.uid)
            if events := job.advance(response.token, response.finish_reason):
                out.append((job.stream, events))
            if response.finish_reason is not None:
                self._remember(response.all_tokens, response.prompt_cache)
            elif job.done:
                left_early.append(response.uid)
            if job.done:
                del self._jobs[response.uid]
        self._remove(left_early)

    def _admit(self, out: list[tuple[EventStream, Batch]]) -> None:
        """Give the generator waiting prompts, the shortest first but for how long they have waited."""
        while self._waiting and len(self._prefilling) < _PREFILLS and len(self._jobs) < self._max_rows:
            credit = _AGEING * self._prefill_chunk
            job = min(self._waiting, key=lambda job: len(job.request.prompt) - credit * job.age)
            self._waiting.remove(job)
            try:
                self._insert(job)
            except Exception as error:
                log.exception("a request could not be started")
                job.cancel(internal_error(error))
                out.append(_failure(job))

    def _insert(self, job: Job) -> None:
        request = job.request
        sampler, processors = job.sampler(), job.processors()
        cache, job.cached = self.prefixes.take(request.prompt)
        (uid,) = self._batch.insert(
            [request.prompt[job.cached :]],
            max_tokens=[request.max_tokens],
            caches=[cache],
            all_tokens=[request.prompt[: job.cached]],
            samplers=[sampler],
            logits_processors=[processors],
            stop_sequences=[self._eos],
        )
        job.start()
        self._prefilling.add(uid)
        self._jobs[uid] = job

    def _end_failed(self, out: list[tuple[EventStream, Batch]]) -> None:
        """Take out the requests that were cancelled or failed, and tell their streams."""
        failed = [uid for uid, job in self._jobs.items() if job.error is not None]
        jobs = [self._jobs.pop(uid) for uid in failed] + [job for job in self._waiting if job.error is not None]
        self._waiting = [job for job in self._waiting if job.error is None]
        out += [_failure(job) for job in jobs]
        self._remove(failed)

    def _remove(self, uids: Sequence[int]) -> None:
        """Take rows out of the generator and keep what was computed for them."""
        if not uids:
            return
        self._prefilling.difference_update(uids)
        removed = self._batch.remove(uids, return_prompt_caches=not self.suspended)
        for cache, tokens in removed.values():
            self._remember(tokens, cache)

    def _remember(self, tokens: Sequence[int] | None, cache: KVCache | None) -> None:
        if tokens and cache and self.prefixes.max_bytes:
            mx.eval([layer.state for layer in cache])  # else it holds on to the whole batch it was cut from
            self.prefixes.store(tokens, cache)

    def _everyone(self) -> list[Job]:
        return [*self._jobs.values(), *self._waiting]

    def _new_batch(self) -> Any:
        return BatchGenerator(
            self._network,
            completion_batch_size=self._max_rows,
            prefill_batch_size=_PREFILLS,
            prefill_step_size=self._prefill_chunk,
            stream=mx.default_stream(mx.default_device()),
        )


def _failure(job: Job) -> tuple[EventStream, Batch]:
    return job.stream, [job.fail()]
