"""How events leave the engine thread: once per step for all requests of a receiver, not once per token.

A stream belongs to one request and is read by one consumer; an outlet groups the streams that live on the same
event loop, so that a step wakes that loop once.
"""

from __future__ import annotations

import asyncio
import queue
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lib_mlx.generation import GenerationEvent

Batch = list["GenerationEvent"]
ChoiceEvent = tuple[int, "GenerationEvent"]
"""An event and the answer it belongs to, of several to one request."""


class Outlet(Protocol):
    """Where the engine delivers a step's events."""

    def post(self, deliveries: list[tuple[EventStream, Batch]]) -> None:
        """Hand over events. Engine thread; never blocks; raises RuntimeError if the receiver is gone."""


class EventStream(Protocol):
    """The receiving end of one request."""

    outlet: Outlet

    def push(self, events: Batch) -> None:
        """Take events in; called by the outlet only."""


class LoopOutlet:
    """Delivers to streams read by coroutines of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def post(self, deliveries: list[tuple[EventStream, Batch]]) -> None:
        """Wake the loop once for all `deliveries`."""
        self._loop.call_soon_threadsafe(self._deliver, deliveries)

    @staticmethod
    def _deliver(deliveries: list[tuple[EventStream, Batch]]) -> None:
        for stream, events in deliveries:
            stream.push(events)


class Choices:
    """Events of the answers to one request, for a coroutine of the outlet's loop."""

    def __init__(self, outlet: LoopOutlet, count: int = 1) -> None:
        self.streams: list[EventStream] = [_ChoiceStream(self, index, outlet) for index in range(count)]
        """One per answer."""
        self._pending: list[ChoiceEvent] = []
        self._wake = asyncio.Event()

    def push(self, index: int, events: Batch) -> None:
        """Take events of the answer `index` in, on the loop's thread."""
        self._pending += [(index, event) for event in events]
        self._wake.set()

    async def get(self) -> list[ChoiceEvent]:
        """Wait for events and return all that have come. Cancelling the wait loses nothing."""
        await self._wake.wait()
        self._wake.clear()
        events, self._pending = self._pending, []
        return events


class _ChoiceStream:
    """One of several answers."""

    def __init__(self, choices: Choices, index: int, outlet: LoopOutlet) -> None:
        self.outlet: Outlet = outlet
        self._choices = choices
        self._index = index

    def push(self, events: Batch) -> None:
        """Take events in, on the loop's thread."""
        self._choices.push(self._index, events)


class _ThreadOutlet:
    """Delivers to streams read by threads."""

    def post(self, deliveries: list[tuple[EventStream, Batch]]) -> None:
        for stream, events in deliveries:
            stream.push(events)


_THREADS = _ThreadOutlet()


class ThreadEventStream:
    """Events of one request for a thread."""

    def __init__(self) -> None:
        self.outlet: Outlet = _THREADS
        self._pending: queue.SimpleQueue[Batch] = queue.SimpleQueue()

    def push(self, events: Batch) -> None:
        """Take events in."""
        self._pending.put(events)

    def get(self) -> Batch:
        """Block until there are events."""
        return self._pending.get()
