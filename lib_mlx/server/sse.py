"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

sse-starlette is not used: importing it replaces `uvicorn.Server.handle_exit` for every server of the host's
process, and it leaves a task on each event loop that polls global state twice a second.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import StreamingResponse

from lib_mlx.errors import Internal
from lib_mlx.generation import Failed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from lib_mlx.engine.event_stream import ChoiceEvent
    from lib_mlx.server.session import Session

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def sse(data: Mapping[str, Any], event: str | None = None) -> bytes:
    """Return one event's bytes."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"


class EventStreamResponse(StreamingResponse):
    """Streams what `render` makes of a session's events and closes the session at the end, however it comes.

    `render` is given the events of one engine step and returns bytes; one step is one write. While there are no
    events `keep_alive` keeps the connection alive and shows whether the client is still there.
    """

    def __init__(
        self,
        session: Session,
        head: bytes,
        render: Callable[[list[ChoiceEvent]], bytes],
        *,
        media_type: str = "text/event-stream",
        keep_alive: bytes = KEEP_ALIVE,
    ) -> None:
        super().__init__(
            self._body(session, head, render, keep_alive),
            media_type=media_type,
            headers=HEADERS,
        )
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream, and close the session."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in `_body`: a client that leaves at once never starts it
            self._session.close()

    @staticmethod
    async def _body(
        session: Session, head: bytes, render: Callable[[list[ChoiceEvent]], bytes], keep_alive: bytes
    ) -> AsyncIterator[bytes]:
        if head:
            yield head
        ended = False
        while not ended:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    events = await session.next()
            except TimeoutError:
                if keep_alive:
                    yield keep_alive
                continue
            try:
                chunk = render(events)
            except Exception as error:  # the client is told, not cut off
                log.exception("an answer could not be rendered")
                session.close()
                yield render([(0, Failed(Internal(f"The answer could not be rendered: {type(error).__name__}.")))])
                return
            ended = session.ended
            if ended:
                session.close()  # before the rest is sent: reading it may take its time
            if chunk:
                yield chunk
