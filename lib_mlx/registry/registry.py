"""The models of one server: which there are, loaded when they are asked for, kept by use, given up for memory.

```
available ──► loading ──► ready ⇄ suspended
                 │          └──► unloading ──► available
                 └──► failed (tried again when it is asked for again)
```
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from lib_mlx import memory
from lib_mlx.engine import heap
from lib_mlx.engine.loading import open_model
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidArgument, LibMlxError, ModelBusy, ShuttingDown
from lib_mlx.registry.facts import read_facts
from lib_mlx.registry.lease import Lease, give_up
from lib_mlx.registry.need import estimate_need, too_large
from lib_mlx.registry.slot import FOREVER, ModelEntry, ModelSpec, Slot
from lib_mlx.registry.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.registry.facts import ModelFacts

log = logging.getLogger(__name__)

_CLOSE_S = 5.0
_PASSING = frozenset({"loading", "unloading"})


class Registry:
    """The models of one server. Thread-safe; nothing blocks but what says so.

    Args:
        keep_alive_s: unload a model after so long without a request.
        limit_bytes: the most that all models may take together; what the machine has free if None.
        discover: called for further models, each time they are listed or an unknown one is asked for.
        any_name: whether the first model answers to every name.
    """

    def __init__(
        self,
        *,
        keep_alive_s: float = FOREVER,
        limit_bytes: int | None = None,
        discover: Callable[[], Iterable[ModelSpec]] = tuple,
        any_name: bool = False,
    ) -> None:
        self._keep_alive_s = keep_alive_s
        self._limit_bytes = limit_bytes
        self._slots = Slots(discover, any_name=any_name)
        self._changed = self._slots.changed
        self._room = threading.Lock()  # one load at a time decides what must go for it
        self._keeper: threading.Thread | None = None
        self._closed = False
        self._suspended = False

    def add(self, spec: ModelSpec) -> None:
        """Make a model known, to be loaded at its first use."""
        self._slots.add_new((spec,))

    def add_failed(self, spec: ModelSpec, error: LibMlxError) -> None:
        """Make a model known that its host could not keep: whoever asks for it gets `error`."""
        self._slots.add(Slot(spec, owned=False, status="failed", error=error))

    def add_loaded(self, spec: ModelSpec, engine: EngineModel, created: int) -> None:
        """Make a model known that its host has loaded, and alone unloads."""
        slot = Slot(spec, owned=False, status="ready", progress=1.0, engine=engine, created=created)
        slot.bytes = engine.weight_bytes
        self._slots.add(slot, first=True)

    def subscribe(self, listener: Callable[[ModelEntry], None]) -> Callable[[], None]:
        """Have `listener` called at every change, on whatever thread made it; returns what ends that.

        It must be quick, and wait for nobody.
        """
        return self._slots.subscribe(listener)

    def entries(self) -> list[ModelEntry]:
        """Return all models, in the order they were made known. Looks at the disk if models are discovered."""
        self._slots.discover()
        with self._changed:
            return [slot.entry() for slot in self._slots]

    def known(self) -> list[ModelEntry]:
        """Return the models that are known already; looks at nothing."""
        with self._changed:
            return [slot.entry() for slot in self._slots]

    def find(self, name: str | None) -> ModelEntry:
        """Return the model that answers to `name`; without a name, the first one. May look at the disk for it.

        Raises:
            ModelNotFound: there is none.
        """
        with self._changed:
            known = self._slots.match(name)
            if known is not None:
                return known.entry()
        self._slots.discover()
        with self._changed:
            return self._slots.find(name).entry()

    @staticmethod
    def facts(entry: ModelEntry) -> ModelFacts:
        """Return what a model's files say; reads them. Errors are those of `registry.facts.read_facts`."""
        return read_facts(entry)

    def lease(self, name: str | None) -> Future[Lease]:
        """Use a model: it is loaded first if it is not. The future ends with a lease to be released.

        Requests for the same model wait for one load. Cancelling the future gives the wait up, not the load.

        Raises:
            ModelNotFound, ShuttingDown: at once; `find` makes models known that appeared since. What goes wrong with
                a load is the future's exception.
            LibMlxError: the model is its host's, and failed.
        """
        wanted: Future[Lease] = Future()
        with self._changed:
            self._refuse_if_closed()
            slot = self._slots.find(name)
            if slot.error is not None and not slot.owned:
                raise slot.error.copy()
            slot.waiting.append(wanted)
            if slot.status == "ready":
                self._hand_out(slot)
            elif slot.status in {"available", "failed"}:
                self._start_load(slot)
        self._slots.publish(slot)
        return wanted

    give_up = staticmethod(give_up)

    def preload(self, name: str) -> None:
        """Begin to load a model if it is not loaded; raises as `lease` does. May look at the disk for it."""
        give_up(self.lease(self.find(name).id))

    def unload(self, name: str) -> None:
        """Unload a model, or cancel its load. Blocks until its memory is free.

        Raises:
            ModelNotFound, ModelBusy: there is none, or it is answering requests.
            InvalidArgument: it is its host's.
        """
        known = self.find(name).id
        with self._changed:
            slot = self._slots.find(known)
            if not slot.owned:
                raise InvalidArgument(
                    f"The model {slot.spec.id!r} belongs to the program that serves it.",
                    hint="It is unloaded there, with unload_model.",
                    param="model",
                )
            if slot.status == "loading":
                slot.cancelled.set()
            self._changed.wait_for(lambda: slot.status not in _PASSING)
            if slot.busy:  # of a load, too, that ended before it noticed
                raise ModelBusy(
                    f"The model {slot.spec.id!r} is answering {slot.busy} requests.", hint="Cancel them, or wait."
                )
            if slot.status != "ready":
                return
            slot.status = "unloading"
        self._unload(slot)

    def suspend(self) -> None:
        """Evaluate nothing more until `resume`. Returns when the running step has ended.

        Loaded models are suspended; loads under way are given up, and begin again.
        """
        with self._changed:
            self._suspended = True
            for slot in self._slots:
                if slot.status == "loading":
                    slot.postponed = True
                    slot.cancelled.set()
        get_worker().run(lambda: None)  # a load's slice of weights has ended then, and it looks before the next
        self._pass_on()

    def resume(self) -> None:
        """Go on where `suspend` stopped."""
        with self._changed:
            self._suspended = False
            for slot in self._slots:
                if slot.waiting and slot.status in {"available", "failed"}:
                    self._start_load(slot)
        self._pass_on()

    @property
    def suspended(self) -> bool:
        """Whether nothing is evaluated."""
        return self._suspended

    def _pass_on(self) -> None:
        """Have the loaded models do as the registry does."""
        with self._changed:
            ready = [slot for slot in self._slots if slot.status == "ready"]
        for slot in ready:
            if (engine := slot.engine) is not None:
                with contextlib.suppress(ShuttingDown):  # it is being unloaded
                    self._match_suspension(engine)
                self._slots.publish(slot)

    def _match_suspension(self, engine: EngineModel) -> None:
        while engine.suspended != (wanted := self._suspended):  # which may change meanwhile
            engine.suspend() if wanted else engine.resume()

    def close(self) -> None:
        """Unload what was loaded here and refuse what comes. Blocks, 5 s at most for loads to notice.

        One that notices later frees what it loaded itself.
        """
        with self._changed:
            self._closed = True
            for slot in self._slots:
                slot.cancelled.set()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not any(s.status in _PASSING for s in self._slots), _CLOSE_S)
            ready = [slot for slot in self._slots if slot.owned and slot.status == "ready"]
            for slot in ready:
                slot.status = "unloading"
        for slot in ready:
            self._unload(slot)

    # Loading

    def _start_load(self, slot: Slot) -> None:
        if self._suspended:  # `resume` starts it
            return
        slot.status, slot.progress, slot.stage, slot.error = "loading", 0.0, "", None
        slot.cancelled.clear()
        slot.postponed = False
        threading.Thread(target=self._load, args=(slot,), name=f"lib_mlx-load-{slot.spec.id}", daemon=True).start()

    def _load(self, slot: Slot) -> None:
        spec = slot.spec
        try:
            self._refuse_if_closed()
            self._make_room(slot)
            engine = open_model(
                spec.path,
                spec.config,
                revision=spec.revision,
                progress=lambda fraction, stage: self._progressed(slot, fraction, stage),
                cancelled=slot.cancelled.is_set,
            )
            self._loaded(slot, engine)
        except BaseException as error:  # a panic in Rust is no Exception
            if not isinstance(error, LibMlxError):
                log.exception("loading %s failed", spec.id)
            self._failed(slot, error)

    def _loaded(self, slot: Slot, engine: EngineModel) -> None:
        """Take in what was loaded; raises ShuttingDown if nobody wants it any more."""
        self._match_suspension(engine)
        with self._changed:
            wanted = not self._closed
            if wanted:
                slot.status, slot.engine = "ready", engine
                slot.bytes = max(slot.bytes, engine.weight_bytes)  # weights may be kept in a larger type
                slot.created, slot.used = int(time.time()), time.monotonic()
                slot.keep_alive_s = self._keep_alive(slot.spec)
                self._hand_out(slot)
                self._start_keeper()
                self._changed.notify_all()
        if not wanted:
            engine.unload()
            raise _stopping()
        self._pass_on()  # it may have changed meanwhile
        self._slots.publish(slot)

    def _failed(self, slot: Slot, error: BaseException) -> None:
        known = error if isinstance(error, LibMlxError) else LibMlxError(f"The load failed: {error}.")
        waiting: list[Future[Lease]] = []
        with self._changed:
            slot.bytes = 0
            if slot.postponed and not self._closed:
                slot.status, slot.progress = "available", 0.0
                if slot.waiting:
                    self._start_load(slot)  # unless that is still to wait
            else:
                slot.status, slot.error = "failed", known.copy()
                waiting, slot.waiting = slot.waiting, []
            self._changed.notify_all()
        for wanted in waiting:
            if wanted.set_running_or_notify_cancel():
                wanted.set_exception(known.copy())
        self._slots.publish(slot)

    def _hand_out(self, slot: Slot) -> None:
        """Give leases to all who wait for `slot`, which is ready."""
        waiting, slot.waiting = slot.waiting, []
        for wanted in waiting:
            if slot.engine is not None and wanted.set_running_or_notify_cancel():
                slot.busy += 1
                wanted.set_result(Lease(slot.spec.id, slot.engine, partial(self._released, slot)))

    def _make_room(self, slot: Slot) -> None:
        """Unload what was not used for longest until `slot` fits; raises InsufficientMemory if it never does."""
        need = estimate_need(slot.spec)
        with self._room:
            while True:
                with self._changed:
                    others = [other for other in self._slots if other is not slot]
                    room = self._room_beside(others)
                    if need <= room or slot.cancelled.is_set():  # which the load itself looks for
                        slot.bytes = need
                        return
                    idle = [other for other in others if other.evictable]
                    victim = min(idle, key=lambda other: other.used, default=None)
                    if victim is not None:
                        victim.status = "unloading"
                    elif any(other.status == "unloading" for other in others):
                        self._changed.wait()
                    else:
                        raise too_large(slot.spec, need, room, self._limit_bytes)
                if victim is not None:
                    self._unload(victim)

    def _room_beside(self, others: list[Slot]) -> int:
        """Return how many bytes another model may take; what loads already will take its own of what is free."""
        coming = sum(other.bytes * (1 - other.progress) for other in others if other.status == "loading")
        free = memory.available_bytes() - int(coming)
        return free if self._limit_bytes is None else min(free, self._limit_bytes - sum(one.bytes for one in others))

    def _progressed(self, slot: Slot, fraction: float, stage: str) -> None:
        with self._changed:
            slot.progress, slot.stage = round(fraction, 4), stage
        self._slots.publish(slot)

    # Unloading

    def _released(self, slot: Slot, keep_alive_s: float | None) -> None:
        with self._changed:
            slot.busy -= 1
            slot.used = time.monotonic()
            slot.keep_alive_s = self._keep_alive(slot.spec) if keep_alive_s is None else keep_alive_s
            self._changed.notify_all()
        self._slots.publish(slot)

    def _keep_alive(self, spec: ModelSpec) -> float:
        return self._keep_alive_s if spec.keep_alive_s is None else spec.keep_alive_s

    def _unload(self, slot: Slot) -> None:
        """Free what `slot`, marked as unloading, holds; load it again if it was asked for meanwhile."""
        self._slots.publish(slot)
        engine, slot.engine = slot.engine, None
        if engine is not None:
            engine.unload()
            del engine
            get_worker().run(heap.release)  # the tokenizer went with the last reference
        with self._changed:
            slot.status, slot.bytes, slot.progress = "available", 0, 0.0
            if slot.waiting:
                self._start_load(slot)
            self._changed.notify_all()
        self._slots.publish(slot)

    def _start_keeper(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="lib_mlx-keeper", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        """Unload what has been idle for too long, until the registry is closed."""
        while True:
            with self._changed:
                if self._closed:
                    return
                due = min(self._slots, key=lambda slot: slot.expires_at)
                left = due.expires_at - time.monotonic()
                if left > 0:
                    self._changed.wait(None if left == FOREVER else left)
                    continue
                due.status = "unloading"
            self._unload(due)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise _stopping()


def _stopping() -> ShuttingDown:
    return ShuttingDown("The server is stopping.", hint="Start it again.")
