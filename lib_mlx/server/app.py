"""The ASGI application of one server."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from lib_mlx.errors import Internal, InvalidArgument, LibMlxError, MethodNotAllowed, NotFound
from lib_mlx.server.anthropic import endpoints as anthropic
from lib_mlx.server.dialects import error_shape
from lib_mlx.server.http import JsonResponse
from lib_mlx.server.openai import endpoints as openai
from lib_mlx.server.request_id import RequestIdMiddleware
from lib_mlx.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.server.state import ServerState

log = logging.getLogger(__name__)


def create_app(state: ServerState) -> Starlette:
    """Return the application; it is bound to the event loop it first runs on."""
    app = Starlette(
        routes=[Route("/health", health, methods=["GET"]), *anthropic.routes(), *openai.routes()],
        middleware=[Middleware(RequestIdMiddleware)],
        exception_handlers={LibMlxError: _known_error, HTTPException: _http_error, Exception: _defect},
    )
    app.router.redirect_slashes = False
    app.state.server = state
    return app


async def health(request: Request) -> Response:
    """`GET /health`: 200 once the server can answer, 503 while the engine has been at one step for too long."""
    state = state_of(request)
    models = state.registry.known()
    stalled = any(entry.engine is not None and entry.engine.stalled for entry in models)
    return JsonResponse(
        {
            "status": "stalled" if stalled else "ok",
            "models": [entry.id for entry in models if entry.status == "ready"],
            "in_flight": state.sessions.in_flight,
            "uptime_s": round(time.monotonic() - state.started, 3),
        },
        503 if stalled else 200,
    )


async def _known_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, LibMlxError):
        raise error
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else {}
    return JsonResponse(error_shape(request)(error), error.http_status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    where = f"{request.method} {request.url.path}"
    known: LibMlxError
    if error.status_code == 404:
        known = NotFound(f"There is no {where}.", hint="The API is under /v1.")
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        known = MethodNotAllowed(f"{where} is not allowed.", hint=f"Use {allowed}." if allowed else "")
    else:
        known = InvalidArgument(f"{where} failed: {error.detail}.")
    response = await _known_error(request, known)
    response.headers.update(error.headers or {})
    return response


async def _defect(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return await _known_error(request, Internal(f"{type(error).__name__}: {error}.", hint="Please report this."))
