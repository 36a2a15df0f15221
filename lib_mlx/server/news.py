"""What changes about the models and handles, for whoever wants to hear of it: `GET /v1/events`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from lib_mlx.registry import ModelEntry, Registry
    from lib_mlx.status import Handles, Status

    Change: TypeAlias = ModelEntry | Status

_KEPT = 256


class News:
    """Hands changes to coroutines of one event loop."""

    def __init__(self, registry: Registry, handles: Handles) -> None:
        self._registry = registry
        self._handles = handles
        self._readers: set[asyncio.Queue[Change | None]] = set()
        self._unsubscribe: list[Callable[[], None]] = []
        self._closed = False

    async def read(self, silence_s: float) -> AsyncIterator[Change | None]:
        """Yield every model and handle as it is, then every change; None after so long without. Ends with the server.

        Of changes that are not read in time the oldest are lost.
        """
        if not self._unsubscribe and not self._closed:  # or nobody would end it
            self._subscribe()
        queue: asyncio.Queue[Change | None] = asyncio.Queue(_KEPT)
        self._readers.add(queue)
        try:
            present: list[Change] = [*self._registry.known(), *self._handles.statuses()]
            for change in present:
                yield change
            while not self._closed:
                try:
                    news = await asyncio.wait_for(queue.get(), silence_s)
                except TimeoutError:
                    yield None
                    continue
                if news is None:
                    return
                yield news
        finally:
            self._readers.discard(queue)

    def close(self) -> None:
        """End all readers."""
        self._closed = True
        self._tell(None)
        for unsubscribe in self._unsubscribe:
            unsubscribe()

    def _subscribe(self) -> None:
        loop = asyncio.get_running_loop()

        def tell(change: Change) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is reading
                loop.call_soon_threadsafe(self._tell, change)

        def tell_handle(_number: int, status: Status | None) -> None:
            if status is not None:
                tell(status)

        self._unsubscribe = [self._registry.subscribe(tell), self._handles.subscribe(tell_handle)]

    def _tell(self, change: Change | None) -> None:
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(change)
