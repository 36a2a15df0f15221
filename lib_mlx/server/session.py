"""One generation on behalf of one HTTP request: admitted, prepared, running, and surely ended."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from lib_mlx.engine.event_stream import Choices, LoopOutlet
from lib_mlx.errors import Cancelled, Draining, Internal, ModelNotFound, ShuttingDown, Suspended
from lib_mlx.generation import Failed, Finished
from lib_mlx.server.admission import Admission
from lib_mlx.server.fields import new_id
from lib_mlx.server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from concurrent.futures import Future

    from lib_mlx.engine.engine import AnyJob, EngineModel
    from lib_mlx.engine.event_stream import ChoiceEvent
    from lib_mlx.engine.sampling import ResolvedSampling
    from lib_mlx.errors import LibMlxError
    from lib_mlx.generation import GenerationRequest
    from lib_mlx.registry import Lease, Registry

T = TypeVar("T")
_EMBEDDING_THREADS = 4  # they wait for the engine
_DRAINING_S = 1  # till clients may ask again: another server, behind a balancer


class Sessions:
    """The generations of one server. Belongs to its event loop."""

    def __init__(self, registry: Registry, queue_limit: int, *, fail_suspended: bool = False) -> None:
        self.metrics = Metrics()
        self._registry = registry
        self._admission = Admission(queue_limit)
        self._outlet: LoopOutlet | None = None
        self._open: dict[str, Session] = {}
        self._waiting: dict[asyncio.Future[Any], Callable[[], LibMlxError] | None] = {}
        """With why each was ended by us, if it was."""
        self.draining = False
        """Whether nothing new is taken, while what was is finished."""
        self._closing = False
        self._fail_suspended = fail_suspended
        # Templates and tokenisers take CPU time and one lock per model: one thread, off the loop.
        self._pool = ThreadPoolExecutor(1, "lib_mlx-prepare")
        self._embedding = ThreadPoolExecutor(_EMBEDDING_THREADS, "lib_mlx-embed")

    @property
    def in_flight(self) -> int:
        """Requests being worked on, running and waiting."""
        return self._admission.in_flight

    async def start(
        self,
        name: str | None,
        requests: Sequence[GenerationRequest],
        *,
        request_id: str,
        choices: int = 1,
        keep_alive_s: float | None = None,
    ) -> Session:
        """Admit a request, load its model if need be, prepare and submit it, to be answered `choices` times.

        Args:
            name: the model's; None is the first one.
            requests: what to generate; of several, the answers are numbered through.
            request_id: what to find the session by.
            choices: how many answers to make.
            keep_alive_s: when to unload the model afterwards; None: as it is configured.

        Raises:
            QueueFull, Draining, ShuttingDown, Suspended, ModelNotFound: it was not admitted.
            LibMlxError: the model cannot be loaded, or refuses it.
        """
        async with self.lease(name) as lease:
            prepared = [await self.work(lease.engine.prepare, request) for request in requests]
            self._refuse_if_resting()  # it may have come meanwhile, and nobody would end what begins after it
            if self._outlet is None:
                self._outlet = LoopOutlet(asyncio.get_running_loop())
            events = Choices(self._outlet, choices * len(prepared))
            jobs: list[AnyJob] = []
            for request in prepared:
                jobs += lease.engine.submit_choices(request, events.streams[len(jobs) : len(jobs) + choices])
            key = new_id("req") if request_id in self._open else request_id  # clients choose ids
            session = self._open[key] = Session(self, lease.keep(), events, jobs, key, keep_alive_s)
        return session

    @contextlib.asynccontextmanager
    async def lease(self, name: str | None, *, tends: bool = False) -> AsyncIterator[KeptLease]:
        """Admit a request and use its model, loaded first if need be; both end with the block unless kept.

        One that `tends` to the model, and asks it nothing, is admitted also while the server drains.
        """
        self._refuse_if_resting()
        if self.draining and not tends:
            raise Draining(
                "The server finishes what it has begun and takes no more.",
                hint="Ask another one, or this one when DELETE /v1/drain was sent.",
                retry_after=_DRAINING_S,
            )
        self._admission.enter()
        kept = None
        try:
            kept = KeptLease(await self._lease(name))
            self._refuse_if_resting()
            yield kept
        finally:
            if kept is None or not kept.kept:
                self._admission.leave()
                if kept is not None:
                    kept.lease.release(kept.keep_alive_s)

    async def _lease(self, name: str | None) -> Lease:
        try:
            wanted = self._registry.lease(name)
        except ModelNotFound:  # it may have appeared on the disk, where the loop does not look itself
            await asyncio.to_thread(self._registry.find, name)
            wanted = self._registry.lease(name)
        try:
            return await self.wait_for(wanted)
        except BaseException:
            self._registry.give_up(wanted)  # it may have come as the wait ended
            raise

    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function` on the thread that prepares requests: for what would hold up the loop."""
        self._refuse_if_resting()
        return await self.wait_for(self._pool.submit(_guarded, function, *arguments))

    async def embed(
        self, engine: EngineModel, text: str | Sequence[int], *, truncate: bool, cancelled: Callable[[], bool]
    ) -> tuple[list[float], int]:
        """Embed on a thread of its own; see `EngineModel.embed`."""
        self._refuse_if_resting()

        def embed() -> tuple[list[float], int]:
            return engine.embed(text, truncate=truncate, cancelled=lambda: self._resting or cancelled())

        return await self.wait_for(self._embedding.submit(_guarded, embed))

    @property
    def limit(self) -> int:
        """The most requests in flight."""
        return self._admission.limit

    @property
    def closing(self) -> bool:
        """Whether the server is stopping."""
        return self._closing

    def find(self, request_id: str) -> Session | None:
        """Return the session of a request in flight."""
        return self._open.get(request_id)

    def suspended(self) -> None:
        """End the requests under way if they are not to wait; called when the registry is suspended."""
        if self._resting:
            self._end(_suspended)

    def close(self) -> None:
        """Refuse new requests and end the running ones with `shutting_down`."""
        self._closing = True
        self._end(_stopping)
        for pool in (self._pool, self._embedding):
            pool.shutdown(wait=False, cancel_futures=True)

    def _end(self, why: Callable[[], LibMlxError]) -> None:
        for session in list(self._open.values()):
            session.end(why())
        for future in self._waiting:
            self._waiting[future] = why
            future.cancel()

    async def wait_for(self, future: Future[T]) -> T:
        """Wait for what is worked on, unless the server stops first, or is suspended and keeps nobody waiting."""
        waiting = asyncio.wrap_future(future)
        self._waiting[waiting] = None
        try:
            return await waiting
        except asyncio.CancelledError:
            if (why := self._waiting[waiting]) is not None:  # whether or not that still holds
                raise why() from None
            self._refuse_if_resting()
            raise
        finally:
            del self._waiting[waiting]

    @property
    def _resting(self) -> bool:
        return self._closing or (self._fail_suspended and self._registry.suspended)

    def _refuse_if_resting(self) -> None:
        if self._resting:
            raise _stopping() if self._closing else _suspended()

    def forget(self, session: Session) -> None:
        """Count `session` out; called once by `Session.close`."""
        self._open.pop(session.request_id, None)
        self._admission.leave()


class KeptLease:
    """A lease that ends with a block unless the block keeps it."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.kept = False
        self.keep_alive_s: float | None = None
        """When to unload the model afterwards; None: as it is configured."""

    @property
    def engine(self) -> EngineModel:
        """The model."""
        return self.lease.engine

    @property
    def id(self) -> str:
        """The model's name."""
        return self.lease.id

    def keep(self) -> Lease:
        """Return the lease; whoever has it releases it, and counts the request out."""
        self.kept = True
        return self.lease


class Session:
    """The events of one running generation. `close` it, whatever happens."""

    def __init__(
        self,
        owner: Sessions,
        lease: Lease,
        choices: Choices,
        jobs: list[AnyJob],
        request_id: str,
        keep_alive_s: float | None = None,
    ) -> None:
        self.model = lease.id
        """The model's name."""
        self.request_id = request_id
        self._owner = owner
        self._lease = lease
        self._keep_alive_s = keep_alive_s
        self._choices = choices
        self._jobs = jobs
        self._running = len(jobs)
        self._ended = self._closed = False

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the model can do."""
        return self._lease.engine.capabilities

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self._lease.engine.context_length

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`."""
        return self._lease.engine.decode(tokens)

    @property
    def sampling(self) -> ResolvedSampling:
        """The sampling in force, defaults filled in."""
        return self._jobs[0].request.sampling

    @property
    def prompt_tokens(self) -> int:
        """How long the prompt is."""
        return len(self._jobs[0].request.prompt)

    async def next(self) -> list[ChoiceEvent]:
        """Wait for events and return them; the last ones end with a choice's `Finished` or the first `Failed`."""
        events = await self._choices.get()
        for at, (_, event) in enumerate(events):
            if isinstance(event, Failed):
                self._owner.metrics.failed(self.model, event)
                self._ended = True
                self.cancel(event.error)  # the other choices: the request has failed
                return events[: at + 1]
            if isinstance(event, Finished):
                self._owner.metrics.finished(self.model, event)
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
            self._lease.engine.cancel(job, error)

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
            self._owner.metrics.left(self.model)
            self.cancel(Cancelled("The client went away."))
        self._lease.release(self._keep_alive_s)
        self._owner.forget(self)


def _guarded(function: Callable[..., T], *arguments: Any) -> T:
    """Call `function`; a panic in Rust, which is no Exception, would end the event loop."""
    try:
        return function(*arguments)
    except Exception:
        raise
    except BaseException as error:
        raise Internal(f"A request could not be prepared: {type(error).__name__}: {error}.") from error


def _suspended() -> Suspended:
    return Suspended("The model is suspended by its host.", hint="Try again when it goes on.", retry_after=1)


def _stopping() -> ShuttingDown:
    return ShuttingDown("The server is stopping.", hint="Start it again.")
