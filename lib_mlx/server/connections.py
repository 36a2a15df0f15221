"""Connections that take too long to say what they want are closed, those that speak no HTTP get an error in JSON.

uvicorn bounds the wait between two requests, not the time that the head of one takes. Its protocol class is not
documented; tests/server/test_connections.py fails loudly when it changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from lib_mlx.errors import InvalidArgument
from lib_mlx.server.openai.common import error_body

if TYPE_CHECKING:
    import asyncio
    from typing import Any

HEAD_S = 10.0
"""From the first byte (or the connection) to the end of the headers."""
MAX_HEAD_BYTES = 64 << 10


class BoundedProtocol(H11Protocol):
    """An HTTP/1.1 connection whose request heads must arrive within `HEAD_S`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, if it is not whole."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_head()
        else:
            self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or a head that is too large, with JSON like all else, and close."""
        error = InvalidArgument(msg, hint=f"Send HTTP/1.1 with at most {MAX_HEAD_BYTES >> 10} KiB of headers.")
        body = orjson.dumps(error_body(error))
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        head = h11.Response(status_code=400, headers=[*headers.items()], reason=b"Bad Request")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_timer()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self.transport.abort()
