"""Images and sounds on their way into the network, one after the other. Engine thread only.

A request whose images are not known waits here, outside the batch. The pixels of one image are made into numbers on a
thread of their own; then the encoder runs on the engine thread, and between two of its layers the worker goes on with
everything else: streams are held up by a layer at most, and a cancelled request ends there. What comes out is kept,
so that an image that comes again in the next turn is not encoded again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lib_mlx.engine.job import internal_error
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import LibMlxError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    import mlx.core as mx

    from lib_mlx.engine.event_stream import EventStream
    from lib_mlx.generation import Failed
    from lib_mlx.models.media_prompt import Inputs, Medium, PromptMedia
    from lib_mlx.models.media_reader import MediaReader
    from lib_mlx.models.vision_network import MediaPlan, VisionNetwork

log = logging.getLogger(__name__)


class FeatureCache:
    """Features of images by digest, `max_bytes` at most, least recently used first out."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[str, mx.array] = OrderedDict()

    def take(self, digest: str) -> mx.array | None:
        """Return what is kept of an image."""
        found = self._kept.get(digest)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self._kept.move_to_end(digest)
        return found

    def store(self, digest: str, features: mx.array) -> None:
        """Keep the features of an image."""
        if features.nbytes > self.max_bytes or digest in self._kept:
            return
        self._kept[digest] = features
        self.nbytes += features.nbytes
        while self.nbytes > self.max_bytes:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self.nbytes = 0


class _Request(Protocol):
    @property
    def media(self) -> PromptMedia | None: ...


class EncodingJob(Protocol):
    """What is asked of a request here."""

    stream: EventStream
    plan: MediaPlan | None
    error: LibMlxError | None

    @property
    def request(self) -> _Request:
        """What was asked for."""

    def cancel(self, error: LibMlxError) -> None:
        """End it with `error`."""

    def fail(self) -> Failed:
        """Return its terminal event."""


@dataclass(eq=False)
class _Task:
    job: EncodingJob
    missing: deque[str]
    done: Callable[[], None]


class _Interrupted(Exception):
    """What is being encoded is not wanted any more, or not now."""


class MediaEncoder:
    """Encodes the images and sounds of one model's requests.

    Args:
        network: encodes.
        reader: makes numbers of pixels and samples.
        max_bytes: bound on the features that are kept.
    """

    def __init__(self, network: VisionNetwork, reader: MediaReader, max_bytes: int) -> None:
        self.features = FeatureCache(max_bytes)
        self.loaded = False
        """Whether the encoder's weights are in memory."""
        self.told: Callable[[], None] = lambda: None
        """Called on the engine thread when they have come into memory."""
        self.active = False
        """Whether the network is at work in a frame further out."""
        self._network: VisionNetwork | None = network
        self._reader = reader
        self._tasks: deque[_Task] = deque()  # the first is under way
        self._suspended = False
        self._pool = ThreadPoolExecutor(1, "lib_mlx-pixels")

    @property
    def jobs(self) -> list[EncodingJob]:
        """The requests that wait here."""
        return [task.job for task in self._tasks]

    def plan(self, job: EncodingJob) -> None:
        """Work out where the tokens of the job's prompt stand, and take in what is known of its images."""
        media = job.request.media
        if media is not None and job.plan is None and self._network is not None:
            job.plan = self._network.plan(media)

    def add(self, job: EncodingJob, missing: list[str], done: Callable[[], None]) -> None:
        """Encode the images `missing` of `job`, then call `done`; it is called too if one of them fails the job."""
        self._tasks.append(_Task(job, deque(missing), done))
        if len(self._tasks) == 1:
            self._advance(self._tasks[0])

    def release(self) -> list[EncodingJob]:
        """Return the jobs that have failed and have nothing more to do with them."""
        leaving = [task for task in self._tasks if task.job.error is not None]
        first = self._tasks[0] if self._tasks else None
        self._tasks = deque(task for task in self._tasks if task not in leaving)
        if first in leaving and self._tasks and not self.active:
            self._advance(self._tasks[0])
        return [task.job for task in leaving]

    def suspend(self, value: bool) -> None:
        """Encode nothing more until this is called with False."""
        self._suspended = value
        if not value and self._tasks and not self.active:
            self._advance(self._tasks[0])

    def close(self) -> None:
        """Let go of the network. The encoder is of no use afterwards."""
        self._network = None
        self._tasks.clear()
        self.features.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _advance(self, task: _Task) -> None:
        """Begin with the task's next image, or end it and go on with the next one."""
        while not self._begun(task):
            self._tasks.popleft()
            task.done()
            if not self._tasks:
                return
            task = self._tasks[0]

    def _begun(self, task: _Task) -> bool:
        """Begin with the task's next image, unless nothing may be begun now; False if there is none to encode."""
        while task.missing and task.job.plan is not None:
            known = self.features.take(task.missing[0])
            if known is None:
                break
            task.job.plan.features[task.missing.popleft()] = known
        if not task.missing or task.job.request.media is None or task.job.error is not None:
            return False
        if not self._suspended:
            medium = task.job.request.media.media[task.missing[0]]
            future = self._pool.submit(self._reader.inputs, medium)
            future.add_done_callback(lambda made: get_worker().post(lambda: self._take(task, medium, made)))
        return True

    def _current(self, task: _Task) -> bool:
        return bool(self._tasks) and self._tasks[0] is task

    def _take(self, task: _Task, medium: Medium, made: Future[Inputs]) -> None:
        """Encode a medium that is numbers now, and go on."""
        if not self._current(task) or self._suspended or self.active or task.missing[0] != medium.digest:
            return  # given up meanwhile, or begun again after a suspension
        self.active = True
        try:
            self._encode(task, medium, made.result())
        except _Interrupted:
            pass
        except BaseException as error:  # a panic in Rust is no Exception
            log.exception("a medium could not be encoded")
            task.job.cancel(error if isinstance(error, LibMlxError) else internal_error(error))
        finally:
            self.active = False
        if self._tasks:
            self._advance(self._tasks[0])

    def _encode(self, task: _Task, medium: Medium, inputs: Inputs) -> None:
        def breathe() -> None:
            get_worker().breathe()
            if not self._current(task) or self._suspended or task.job.error is not None:
                raise _Interrupted

        if self._network is None or task.job.plan is None:
            return
        features = self._network.encode(medium.kind, medium.shape.tokens, inputs, breathe)
        if not self.loaded:
            self.loaded = True
            self.told()
        self.features.store(medium.digest, features)
        task.job.plan.features[medium.digest] = features
        task.missing.popleft()
