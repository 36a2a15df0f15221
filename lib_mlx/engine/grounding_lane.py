"""The lane of a GUI-Actor: one request after the other, in pieces. Engine thread only."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from lib_mlx.engine.job import internal_error
from lib_mlx.errors import LibMlxError

if TYPE_CHECKING:
    from collections.abc import Generator

    from lib_mlx.engine.event_stream import Batch, EventStream
    from lib_mlx.engine.grounding import GroundingJob
    from lib_mlx.engine.media_encoder import MediaEncoder
    from lib_mlx.grounding.actor import GuiActor
    from lib_mlx.grounding.result import Grounding

log = logging.getLogger(__name__)


class GroundingLane:
    """Takes requests to the vision tower, then to the language model and the pointer head.

    Those that wait for the tower are the encoder's, and cancelled ones among them are ended by the scheduler of the
    same model, as all of the encoder's are.

    Args:
        actor: the model.
        encoder: runs its vision tower.
    """

    def __init__(self, actor: GuiActor, encoder: MediaEncoder) -> None:
        self.suspended = False
        self._actor = actor
        self._encoder = encoder
        self._ready: deque[GroundingJob] = deque()  # the first is under way if there are steps
        self._steps: Generator[int, None, Grounding] | None = None

    @property
    def busy(self) -> bool:
        """Whether there is a request to advance, or one to end."""
        return any(job.error for job in self._ready) if self.suspended else bool(self._ready)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn. Any thread."""
        return max(0, len(self._ready) - 1)

    def add(self, job: GroundingJob) -> None:
        """Take `job` in: its picture first."""
        self._encoder.plan(job)
        missing = job.plan.missing(0) if job.plan is not None else []
        self._encoder.add(job, missing, lambda: self._ready.append(job))

    def fail_all(self, error: LibMlxError) -> None:
        """End every request with `error` at the next step."""
        for job in self._ready:
            job.cancel(error)

    def close(self) -> None:
        """Let go of the model. The lane is of no use afterwards."""
        self._ready.clear()
        self._steps = None
        self._actor.close()

    def step(self) -> list[tuple[EventStream, Batch]]:
        """Do one piece of work. Never raises."""
        out = self._end_failed()
        if self._ready and not self.suspended:
            job = self._ready[0]
            try:
                events = self._advance(job)
            except BaseException as error:  # a panic in Rust is no Exception
                if not isinstance(error, LibMlxError):
                    log.exception("the grounding of a request failed; the engine goes on")
                job.cancel(error if isinstance(error, LibMlxError) else internal_error(error))
                return [*out, *self._end_failed()]
            if events:
                self._leave()
                out.append((job.stream, events))
        return out

    def _advance(self, job: GroundingJob) -> Batch:
        """Do the next piece of a job; returns its events if that was the last."""
        if self._steps is None:
            job.start()
            if job.plan is None:
                raise RuntimeError("the picture was not encoded")
            (features,) = job.plan.features.values()
            self._steps = self._actor.ground(job.request.grounding, features)
        try:
            job.made = next(self._steps)
        except StopIteration as end:
            return job.finish(end.value)
        return []

    def _leave(self) -> None:
        """The first request is done with."""
        self._ready.popleft()
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _end_failed(self) -> list[tuple[EventStream, Batch]]:
        out: list[tuple[EventStream, Batch]] = []
        if self._ready and self._ready[0].error is not None:
            job = self._ready[0]
            self._leave()
            out.append((job.stream, [job.fail()]))
        leaving = [job for job in self._ready if job.error is not None]
        self._ready = deque(job for job in self._ready if job not in leaving)
        out += [(job.stream, [job.fail()]) for job in leaving]
        return out
