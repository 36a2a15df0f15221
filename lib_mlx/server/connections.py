"""Connections that take too long, to say what they want or to take the answer, are closed; no HTTP is told so in JSON.

uvicorn bounds the wait between two requests, not the time that the head of one takes, nor that of a client which does
not read. Its protocol class is not documented; tests/server/test_connections.py fails loudly when it changes.
"""

from __future__ import annotations

import itertools
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
"""From the first byte (or the connection) to the end of the headers; and for a body that is answered already."""
MAX_HEAD_BYTES = 64 << 10
SEND_S = 30.0
"""A client takes `SEND_BYTES` of what waits to be sent within this time, or all of it if that is less."""
SEND_BYTES = 16 << 10
_numbers = itertools.count()


class BoundedProtocol(H11Protocol):
    """An HTTP/1.1 connection whose request heads must arrive within `HEAD_S`, and whose answers must be read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self.client = self.client or ("unix", next(_numbers))  # what has no address is told apart, too
        transport.set_write_buffer_limits(high=0)  # writing pauses while anything waits: nothing piles up here
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, if it is not whole, or of a body that nobody waits for any more."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._expect_head()
        else:
            self._stop_head_timer()

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
        self._stop_head_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """It has read everything."""
        self._stop_send_timer()
        super().resume_writing()

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _expect_reading(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._send_timer = self.loop.call_later(SEND_S, self._check_reading)

    def _check_reading(self) -> None:
        if self._unsent - self.transport.get_write_buffer_size() < SEND_BYTES:
            self.transport.abort()
        else:
            self._expect_reading()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
