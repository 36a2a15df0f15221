"""One generation on behalf of one HTTP request: admitted, prepared, running, and surely ended."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lib_mlx.engine.event_stream import Choices, LoopOutlet
from lib_mlx.errors import Cancelled, ShuttingDown
from lib_mlx.generation import Failed, Finished
from lib_mlx.server.admission import Admission

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.engine.event_stream import ChoiceEvent
    from lib_mlx.engine.job import Job, PreparedRequest
    from lib_mlx.engine.sampling import ResolvedSampling
    from lib_mlx.errors import LibMlxError
    from lib_mlx.generation import GenerationRequest
    from lib_mlx.registry import ModelEntry


class Sessions:
    """The generations of one server. Belongs to its event loop."""

    def __init__(self, queue_limit: int) -> None:
        self._admission = Admission(queue_limit)
        self._outlet: LoopOutlet | None = None
        self._open: set[Session] = set()
        self._closing = False
        # Templates and tokenisers take CPU time and one lock per model: one thread, off the loop.
        self._pool = ThreadPoolExecutor(1, "lib_mlx-prepare")

    @property
    def in_flight(self) -> int:
        """Requests being worked on, running and waiting."""
        return self._admission.in_flight

    async def start(self, model: ModelEntry, request: GenerationRequest, choices: int = 1) -> Session:
        """Admit, prepare and submit `request`, to be answered `choices` times.

        Raises:
            QueueFull, ShuttingDown: it was not admitted.
            LibMlxError: the model refuses it.
        """
        self._refuse_if_closing()
        loop = asyncio.get_running_loop()
        if self._outlet is None:
            self._outlet = LoopOutlet(loop)
        self._admission.enter()
        try:
            prepared = await self._prepare(model, request)
            self._refuse_if_closing()
            events = Choices(self._outlet, choices)
            session = Session(self, model, events, model.engine.submit_choices(prepared, events.streams))
        except BaseException:
            self._admission.leave()
            raise
        self._open.add(session)
        return session

    def close(self) -> None:
        """Refuse new requests and end the running ones with `shutting_down`."""
        self._closing = True
        for session in self._open:
            session.end(_stopping())
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _prepare(self, model: ModelEntry, request: GenerationRequest) -> PreparedRequest:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, model.engine.prepare, request)
        except asyncio.CancelledError:
            self._refuse_if_closing()  # the pool was shut down with the request still in its queue
            raise

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise _stopping()

    def forget(self, session: Session) -> None:
        """Count `session` out; called once by `Session.close`."""
        self._open.discard(session)
        self._admission.leave()


class Session:
    """The events of one running generation. `close` it, whatever happens."""

    def __init__(self, owner: Sessions, model: ModelEntry, choices: Choices, jobs: list[Job]) -> None:
        self.model = model
        self._owner = owner
        self._choices = choices
        self._jobs = jobs
        self._running = len(jobs)
        self._ended = self._closed = False

    @property
    def sampling(self) -> ResolvedSampling:
        """The sampling in force, defaults filled in."""
        return self._jobs[0].request.sampling

    async def next(self) -> list[ChoiceEvent]:
        """Wait for events and return them; the last ones end with a choice's `Finished` or the first `Failed`."""
        events = await self._choices.get()
        for at, (_, event) in enumerate(events):
            if isinstance(event, Failed):
                self._ended = True
                self.cancel(event.error)  # the other choices: the request has failed
                return events[: at + 1]
            if isinstance(event, Finished):
                self._running -= 1
                if not self._running:
                    self._ended = True
                    return events[: at + 1]
        return events

    @property
    def ended(self) -> bool:
        """Whether the last terminal event has been read."""
        return self._ended

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the session if the block raises: nobody will read it then."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def cancel(self, error: LibMlxError) -> None:
        """Have the stream end with `Failed(error)`."""
        for job in self._jobs:
            self.model.engine.cancel(job, error)

    def end(self, error: LibMlxError) -> None:
        """Have the stream end with `Failed(error)` now, even if the engine is busy with something else."""
        self.cancel(error)
        self._choices.streams[0].push([Failed(error, self._jobs[0].usage())])

    def close(self) -> None:
        """Give the slot free; a generation still running is cancelled. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not self._ended:
            self.cancel(Cancelled("The client went away."))
        self._owner.forget(self)


def _stopping() -> ShuttingDown:
    return ShuttingDown("The server is stopping.", hint="Start it again.")
