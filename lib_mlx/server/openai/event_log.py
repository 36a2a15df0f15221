"""The events of one response's stream, kept for whoever reads them, while they are made or later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from lib_mlx.server.sse import DONE, HEADERS, KEEP_ALIVE, KEEP_ALIVE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class EventLog:
    """Encoded events, each at the place of its `sequence_number`. Any number of readers; belongs to the event loop."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._closed = False
        self._news = asyncio.Event()
        self.bytes = 0
        """How much is kept."""

    def extend(self, events: Sequence[bytes], *, closed: bool = False) -> None:
        """Add events; `closed` if they are the last."""
        self._events += events
        self.bytes += sum(map(len, events))
        self._closed = closed
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def follow(self, start: int = 0) -> AsyncIterator[bytes]:
        """Yield the events from the place `start` on as they come, then the end of the stream."""
        while True:
            news = self._news
            if chunk := b"".join(self._events[start:]):
                start = len(self._events)
                yield chunk
            elif self._closed:
                yield DONE
                return
            else:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await news.wait()
                except TimeoutError:
                    yield KEEP_ALIVE

    def response(self, start: int = 0) -> StreamingResponse:
        """Return an answer that streams the events from `start` on."""
        return StreamingResponse(self.follow(start), media_type="text/event-stream", headers=HEADERS)
