"""Each request has an id: the client's `X-Request-Id`, or a fresh one. It stands in the answer's header and the log."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from lib_mlx.server.fields import new_id
from lib_mlx.server.prefix_hash import HEADER

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

_VALID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class RequestIdMiddleware:
    """Puts `request_id` into the request's state and into the answer's headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _VALID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id

        begun = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                if log.isEnabledFor(logging.DEBUG):
                    log.debug(
                        "%s: %s %s %d after %.0f ms",
                        request_id,
                        scope["method"],
                        scope["raw_path"].decode("ascii", "backslashreplace"),  # as it was sent: without line breaks
                        message["status"],
                        (time.monotonic() - begun) * 1000,
                    )
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["Request-Id"] = request_id  # where Anthropic's clients look
                if known := scope["state"].get("prefix_hash"):
                    headers[HEADER] = known
            await send(message)

        await self.app(scope, receive, send_with_id)
