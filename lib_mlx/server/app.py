"""The ASGI application of one server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib_mlx.errors import Internal, InvalidArgument, LibMlxError, MethodNotAllowed, NotFound
from lib_mlx.server import management
from lib_mlx.server.anthropic import endpoints as anthropic
from lib_mlx.server.dialects import error_response
from lib_mlx.server.ollama import endpoints as ollama
from lib_mlx.server.openai import endpoints as openai
from lib_mlx.server.request_id import RequestIdMiddleware
from lib_mlx.server.security import KeyMiddleware, SecurityMiddleware, listed_origins

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.config import ServerConfig
    from lib_mlx.server.state import ServerState

log = logging.getLogger(__name__)


def create_app(state: ServerState) -> Starlette:
    """Return the application; it is bound to the event loop it first runs on."""
    app = Starlette(
        routes=[*management.routes(), *anthropic.routes(), *openai.routes(), *ollama.routes()],
        middleware=_middleware(state.config),
        exception_handlers={LibMlxError: _known_error, HTTPException: _http_error, Exception: _defect},
    )
    app.router.redirect_slashes = False
    app.state.server = state
    return app


def _middleware(config: ServerConfig) -> list[Middleware]:
    stack = [Middleware(RequestIdMiddleware), Middleware(SecurityMiddleware, config=config)]
    if config.allowed_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=listed_origins(config),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After"],
            )
        )
    if config.api_key is not None:
        stack.append(Middleware(KeyMiddleware, key=config.api_key))
    return stack


async def _known_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, LibMlxError):
        raise error
    return error_response(request, error)


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
