"""What our own code did not foresee: told to the client as `internal`, logged once, and the server goes on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.requests import Request

from lib_mlx.errors import Internal
from lib_mlx.server.dialects import error_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)


class DefectMiddleware:
    """Stands in for Starlette's, which raises the exception again for uvicorn to log it a second time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception as error:
            log.exception("%s %s failed", scope.get("method"), scope.get("path"))
            if not begun:  # else uvicorn closes the connection, which says that the answer is not whole
                known = Internal(f"{type(error).__name__}: {error}.", hint="Please report this.")
                await error_response(Request(scope), known)(scope, receive, send)
