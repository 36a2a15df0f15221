"""Continuous batching of one model's requests. Everything here runs on the engine thread.

mlx-lm's `BatchGenerator` (or ours, where rows cannot be merged) does one decode step for all rows, then at most one
chunk of prefill, per call. What it is given, and when, is decided here: clients take turns, prompts share the chunk,
short ones go first, old ones are not left behind, and no more run than the memory holds. A request that is cancelled
leaves between two calls, wherever it stands; its work is kept.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lib_mlx.engine.job import Job, internal_error
from lib_mlx.engine.kv_budget import KVBudget
from lib_mlx.engine.prefill_pace import PrefillPace
from lib_mlx.engine.prefix_cache import PrefixCache, agreement
from lib_mlx.engine.serial import SerialGenerator
from lib_mlx.engine.turns import Turns
from lib_mlx.errors import InsufficientMemory
from lib_mlx.models.kv_cache import new_cache
from lib_mlx.models.upstream import BatchGenerator, StopSequences
from lib_mlx.models.vision_network import RowState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from lib_mlx.engine.event_stream import Batch, EventStream
    from lib_mlx.engine.media_encoder import EncodingJob, MediaEncoder
    from lib_mlx.engine.mirror import LeadingGenerator
    from lib_mlx.errors import LibMlxError
    from lib_mlx.models.kv_cache import CacheKind, Footprint, KVCache

log = logging.getLogger(__name__)

_PREFILLS = 4  # prompts processed side by side; more if one step does all of them
_SHARED = 16  # tokens that are worth waiting for another prompt that begins with them


class Scheduler:
    """The lane of one loaded model.

    Args:
        network: mlx-lm's model, or a `VisionNetwork`.
        eos: end tokens.
        cache: what its caches are like.
        max_rows: rows decoded together at most; the rest wait.
        prefill_rate: a first guess of the prompt tokens per second; what is measured later bounds the work per step.
        prefix_bytes: bound on what is kept of past requests.
        kv_bytes: bound on all caches, those of past requests included; None: as the machine's free memory allows.
        row: what a row takes; None: its cache alone.
        encoder: encodes images, if the network reads them.
        new_batch: makes a generator of rows in the place of mlx-lm's.
    """

    def __init__(
        self,
        network: Any,
        eos: frozenset[int],
        cache: CacheKind,
        *,
        max_rows: int = 32,
        prefill_rate: float = 4096,
        prefix_bytes: int = 0,
        kv_bytes: int | None = None,
        row: Footprint | None = None,
        encoder: MediaEncoder | None = None,
        new_batch: Callable[[], SerialGenerator | LeadingGenerator] | None = None,
    ) -> None:
        self.suspended = False
        self.guests = 0  # others that use the network for more than one step
        self._encoder = encoder
        self.prefixes = PrefixCache(prefix_bytes)
        self._network = network
        self._eos = StopSequences([(token,) for token in sorted(eos)])
        self._kind = cache
        self._budget = KVBudget(row or cache.row, kv_bytes)
        self._max_rows = max_rows
        self._pace = PrefillPace(prefill_rate)
        self._waiting: list[Job] = []
        self._turns = Turns()
        self._prefilling: dict[int, int] = {}  # by uid: prompt tokens to process, before the last
        self._jobs: dict[int, Job] = {}  # by uid, those given to the generator
        self._change: Callable[[], None] | None = None  # what waits till none of them is left
        self._new_serial = new_batch or (None if cache.batchable else lambda: SerialGenerator(network))
        self._batch = self._new_batch()

    @property
    def busy(self) -> bool:
        """Whether there is a request to advance, or one to end."""
        if self.suspended:
            return any(job.error for job in self._everyone())
        return bool(self._jobs or self._waiting or self._change) or any(job.error for job in self._encoding)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn. Any thread."""
        return len(self._waiting) + len(self._encoding)

    @property
    def _encoding(self) -> list[EncodingJob]:
        return self._encoder.jobs if self._encoder else []

    def add(self, job: Job) -> None:
        """Take `job` in, to be prefilled when its turn comes."""
        self._waiting.append(job)
        self._turns.come(job.request.client)

    def change(self, work: Callable[[], None] | None) -> None:
        """Run `work`, which changes the network and must not raise, when the requests under way have ended.

        Those that come meanwhile wait for it. What is kept of past requests is dropped. None takes it back.
        """
        self._change = work

    @property
    def changing(self) -> bool:
        """Whether a change is waited for."""
        return self._change is not None

    def fail_all(self, error: LibMlxError) -> None:
        """End every request with `error` at the next step."""
        for job in self._everyone():
            job.cancel(error)

    def abandon(self, error: LibMlxError) -> list[tuple[EventStream, Batch]]:
        """Return the ends of all requests, for an engine thread that does not come back. Any thread."""
        self.fail_all(error)
        return [_failure(job) for job in [*self._jobs.values(), *self._waiting]]

    def step(self) -> list[tuple[EventStream, Batch]]:
        """Advance every row by one token and the prompts by one chunk. Never raises."""
        out: list[tuple[EventStream, Batch]] = []
        try:
            self._step(out)
        except BaseException as error:  # a panic in Rust is no Exception
            log.exception("the model failed; its requests end, the engine goes on")
            for job in self._jobs.values():
                job.cancel(internal_error(error))
                if not job.done:
                    out.append(_failure(job))
            self._jobs.clear()
            self._prefilling.clear()
            self._batch = self._new_batch()
        return out

    def close(self) -> None:
        """Let go of the model and of all that was kept for it. The lane is of no use afterwards."""
        self._network = self._batch = self._new_serial = None
        self.prefixes.clear()

    def _step(self, out: list[tuple[EventStream, Batch]]) -> None:
        if not self.suspended:
            self._make_room()
        self._end_failed(out)
        if self.suspended:
            return
        if self._change is not None and not self._jobs and not self._encoding and not self.guests:
            work, self._change = self._change, None
            self.prefixes.clear()
            work()
        if self._change is None:
            self._admit(out)
        if not self._jobs:
            return
        prompts, tokens = self._next()
        self._snapshot([row.uid for row in prompts if row.end_of_segment and not row.end_of_prompt])
        left_early = {}
        for row in tokens:
            job = self._jobs[row.uid]
            if events := job.advance(row.token, row.logprobs, row.finish_reason):
                out.append((job.stream, events))
            if row.finish_reason is not None:
                self._remember(job, row.all_tokens, row.prompt_cache)
            elif job.done:
                left_early[row.uid] = job
            if job.done:
                del self._jobs[row.uid]
        self._remove(left_early)

    def _next(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """Have the generator do its step: a token for each row, then a chunk of prompts.

        The chunk is shared: neither does a long prompt hold up a short one, nor do many hold up the streams.
        """
        rows = self._decoding
        chunk = self._pace.chunk(rows=rows)
        self._batch.prefill_step_size = self._share(chunk, self._prefilling.values())
        begun = time.perf_counter()
        prompts, tokens = self._batch.next()
        processed = self._note_progress(prompts)
        if 2 * processed > chunk or not prompts:  # less tells little of the speed
            self._pace.stepped(time.perf_counter() - begun, processed, rows=rows)
        return prompts, tokens

    def _note_progress(self, prompts: Iterable[Any]) -> int:
        """Take in how far prompts have come; return how many of their tokens were processed."""
        tokens = 0
        for row in prompts:
            before = self._prefilling.get(row.uid)
            if before is not None:
                processed, total = row.progress
                left = self._prefilling[row.uid] = max(0, total - processed - 1)
                tokens += before - left
                if not left:  # the last token is processed with those of the rows that decode
                    del self._prefilling[row.uid]
                    self._jobs[row.uid].prefilled = True
        return tokens

    @property
    def _decoding(self) -> int:
        """How many rows get a token at each step."""
        return len(self._jobs) - len(self._prefilling)

    # Who runs

    def _admit(self, out: list[tuple[EventStream, Batch]]) -> None:
        """Give the generator waiting prompts, those of the client whose turn it is first."""
        while len(self._jobs) < self._max_rows:
            free = [job for job in self._waiting if not job.held_back]
            in_turn = self._turns.order(free, self._jobs.values(), self._pace.rate)
            job = next((job for job in in_turn if not self._leader(job)), None)
            if job is None:
                return
            if len(self._prefilling) >= _PREFILLS and not self._fits_one_step(job):
                return
            if self._excess([job]) > 0:
                if self._jobs:
                    return  # until one of those that run has ended
                job.cancel(self._too_long(job))
            self._waiting.remove(job)
            try:
                if job.error is None:
                    self._insert(job)
                    continue  # if it is cancelled meanwhile, the next step ends it
            except BaseException as error:  # a panic in Rust is no Exception
                log.exception("a request could not be started")
                job.cancel(internal_error(error))
            out.append(_failure(job))

    def _fits_one_step(self, job: Job) -> bool:
        """Whether the prompts under way and that of `job` take one step: together they join the batch only once."""
        lengths = [job.length - self.prefixes.known(job.prompt, job.request.cache_salt), *self._prefilling.values()]
        return len(lengths) * max(lengths) <= self._pace.chunk(rows=self._decoding)

    def _leader(self, job: Job) -> Job | None:
        """Return a prompt under way that begins like that of `job`, which had better wait and reuse it."""
        if not self._prefilling or not self.prefixes.max_bytes:
            return None
        known = self.prefixes.known(job.prompt, job.request.cache_salt)
        for uid in self._prefilling:
            leader = self._jobs[uid]
            if leader.request.cache_salt == job.request.cache_salt:
                shared = agreement(leader.prompt[:-1], job.prompt)
                if not self._kind.sliceable:  # kept only at these places
                    shared = max((end for end in leader.request.boundaries if end <= shared), default=0)
                if shared >= known + _SHARED:
                    leader.followed = True
                    return leader
        return None

    def _make_room(self) -> None:
        """Before the caches outgrow the memory, send the youngest row back to wait; the last one fails."""
        while self._jobs and self._excess([]) > 0:
            uid, job = max(self._jobs.items(), key=lambda item: -item[1].age)
            if len(self._jobs) == 1:
                job.cancel(self._too_long(job))
                return
            log.debug("memory is short: a request is interrupted after %d tokens", job.completion)
            self._batch.remove([uid])
            self._prefilling.pop(uid, None)
            self._waiting.append(self._jobs.pop(uid))

    def _excess(self, more: list[Job]) -> int:
        """Return by how many bytes the rows that run and `more` would be too large, once what is kept is dropped."""
        lengths = [job.length for job in [*self._jobs.values(), *more]]
        need = self._budget.need(len(lengths), max([*lengths, self._padded(more)], default=0))
        excess = self._budget.excess(need + self.prefixes.nbytes, self._held)
        return excess - self.prefixes.shrink(excess) if excess > 0 else excess

    def _padded(self, more: list[Job]) -> int:
        """Return the length that the next chunk brings prompts to: those that end in it are padded to the others."""
        prompts = [(job.length, job.length) for job in more]
        prompts += [(self._jobs[uid].length, left) for uid, left in self._prefilling.items()]
        if len(prompts) < 2:
            return 0
        step = self._share(self._pace.chunk(rows=self._decoding), [left for _, left in prompts])
        return max(length - left for length, left in prompts) + min(step, max(left for _, left in prompts))

    @staticmethod
    def _share(chunk: int, left: Collection[int]) -> int:
        """Return the tokens that each prompt gets of a `chunk`: as many steps as it takes, all of the same length."""
        longest = max(left, default=0)
        steps = max(1, round(len(left) * longest / chunk))
        return max(1, -(-longest // steps))

    def _held(self) -> int:
        """Return what caches take now; of prompts, what has been processed of them."""
        return int(self._batch.prompt_cache_nbytes) + self.prefixes.nbytes

    def _too_long(self, job: Job) -> InsufficientMemory:
        return InsufficientMemory(
            f"The cache of {job.length} tokens needs {self._budget.need(1, job.length) / 1e9:.3f} GB; "
            "there is less memory for it.",
            hint="Shorten the conversation, raise memory_limit_bytes, set kv_bits or close other programs.",
        )

    def _insert(self, job: Job) -> None:
        tokens = [*job.request.prompt, *job.made]
        sampler, processors = job.sampler(), job.processors()
        cache, cached = self.prefixes.take(tokens, job.request.cache_salt)
        row = cache or new_cache(self._network, self._kind.bits)
        if self._encoder is not None:
            self._encoder.plan(job)
            if job.plan is not None and (missing := job.plan.missing(cached)):
                self._encoder.add(job, missing, lambda: self.add(job))
                return
            row.append(RowState.new(job.plan, cached))
        (uid,) = self._batch.insert_segments(
            [_segments(tokens, cached, job.request.boundaries)],
            max_tokens=[job.request.max_tokens - job.completion],
            caches=[row],
            all_tokens=[tokens[:cached]],
            samplers=[sampler],
            logits_processors=[processors],
            stop_sequences=[self._eos],
        )
        job.start(cached)
        self._prefilling[uid] = len(tokens) - cached - 1
        self._jobs[uid] = job
        self._turns.take(job.request.client)
        self._turns.forget([job for job in self._everyone() if isinstance(job, Job)])

    def _end_failed(self, out: list[tuple[EventStream, Batch]]) -> None:
        """Take out the requests that were cancelled or failed, and tell their streams."""
        released = self._encoder.release() if self._encoder is not None else []
        failed = {uid: job for uid, job in self._jobs.items() if job.error is not None}
        leaving = [job for job in self._waiting if job.error is not None]  # asked once: errors come at any time
        self._waiting = [job for job in self._waiting if job not in leaving]
        for uid in failed:
            del self._jobs[uid]
        out += [_failure(job) for job in [*failed.values(), *leaving, *released]]
        self._remove(failed)

    # What is kept

    def _remove(self, rows: Mapping[int, Job]) -> None:
        """Take rows out of the generator and keep what was computed for them."""
        if not rows:
            return
        for uid in rows:
            self._prefilling.pop(uid, None)
        removed = self._batch.remove(list(rows), return_prompt_caches=not self.suspended)
        for uid, (cache, tokens) in removed.items():
            self._remember(rows[uid], tokens, cache)

    def _snapshot(self, uids: Iterable[int]) -> None:
        """Keep the caches of prompts that have come to the end of a message or, but for a token, of themselves.

        Only where that is of use: the cache cannot be cut back to this place later, or others wait for the prompt.
        """
        wanted = [uid for uid in uids if self._jobs[uid].followed or not self._kind.sliceable]
        for uid, (cache, tokens) in self._batch.extract_cache(wanted).items() if self.prefixes.max_bytes else ():
            self._remember(self._jobs[uid], tokens, cache)

    def _remember(self, job: Job, tokens: Sequence[int] | None, cache: KVCache | None) -> None:
        if tokens and cache and self.prefixes.max_bytes:
            kept = cache
            if self._encoder is not None:
                kept = [layer for layer in cache if not isinstance(layer, RowState)]  # each request has its own
            mx.eval([layer.state for layer in kept])  # else it holds on to the whole batch it was cut from
            self.prefixes.store(tokens, kept, job.request.cache_salt)

    def _everyone(self) -> list[Job | EncodingJob]:
        return [*self._jobs.values(), *self._waiting, *self._encoding]

    def _new_batch(self) -> Any:
        if self._new_serial is not None:
            return self._new_serial()
        return BatchGenerator(
            self._network,
            completion_batch_size=self._max_rows,
            prefill_batch_size=self._max_rows,
            stream=mx.default_stream(mx.default_device()),
        )


def _segments(tokens: list[int], cached: int, boundaries: Iterable[int]) -> list[list[int]]:
    """Return what is left of a prompt, cut at its boundaries."""
    cuts = [cached, *(place for place in boundaries if cached < place < len(tokens)), len(tokens)]
    return [tokens[begin:end] for begin, end in itertools.pairwise(cuts)]


def _failure(job: Job | EncodingJob) -> tuple[EventStream, Batch]:
    return job.stream, [job.fail()]
