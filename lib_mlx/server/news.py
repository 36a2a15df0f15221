"""What changes about the models, for whoever wants to hear of it: `GET /v1/events`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from lib_mlx.registry import ModelEntry, Registry

_KEPT = 256


class News:
    """Hands a registry's changes to coroutines of one event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._readers: set[asyncio.Queue[ModelEntry | None]] = set()
        self._unsubscribe: Callable[[], None] | None = None
        self._closed = False

    async def read(self, silence_s: float) -> AsyncIterator[ModelEntry | None]:
        """Yield every model as it is, then every change; None after so long without one. Ends with the server.

        Of changes that are not read in time the oldest are lost.
        """
        if self._unsubscribe is None:
            loop = asyncio.get_running_loop()

            def tell(entry: ModelEntry) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is reading
                    loop.call_soon_threadsafe(self._tell, entry)

            self._unsubscribe = self._registry.subscribe(tell)
        queue: asyncio.Queue[ModelEntry | None] = asyncio.Queue(_KEPT)
        self._readers.add(queue)
        try:
            for entry in self._registry.known():
                yield entry
            while not self._closed:
                try:
                    entry_or_end = await asyncio.wait_for(queue.get(), silence_s)
                except TimeoutError:
                    yield None
                    continue
                if entry_or_end is None:
                    return
                yield entry_or_end
        finally:
            self._readers.discard(queue)

    def close(self) -> None:
        """End all readers."""
        self._closed = True
        self._tell(None)
        if self._unsubscribe is not None:
            self._unsubscribe()

    def _tell(self, entry: ModelEntry | None) -> None:
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(entry)
