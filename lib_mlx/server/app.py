"""The ASGI application of one server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from lib_mlx.errors import InvalidArgument, LibMlxError, MethodNotAllowed, NotFound
from lib_mlx.server import management, openapi
from lib_mlx.server.anthropic import endpoints as anthropic
from lib_mlx.server.defects import DefectMiddleware
from lib_mlx.server.dialects import error_response
from lib_mlx.server.ollama import endpoints as ollama
from lib_mlx.server.openai import endpoints as openai
from lib_mlx.server.request_id import RequestIdMiddleware
from lib_mlx.server.security import KeyMiddleware, SecurityMiddleware, listed_origins
from lib_mlx.server.web import page

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.config import ServerConfig
    from lib_mlx.server.state import ServerState


def create_app(state: ServerState) -> Starlette:
    """Return the application; it is bound to the event loop it first runs on."""
    app = Starlette(
        routes=[
            *page.routes(),
            *management.routes(),
            *anthropic.routes(),
            *openai.routes(),
            *ollama.routes(),
            *openapi.routes(),
        ],
        middleware=_middleware(state.config),
        exception_handlers={LibMlxError: _known_error, HTTPException: _http_error},
    )
    app.router.redirect_slashes = False
    app.state.server = state
    return app


def _middleware(config: ServerConfig) -> list[Middleware]:
    stack = [
        Middleware(RequestIdMiddleware),
        Middleware(DefectMiddleware),
        Middleware(SecurityMiddleware, config=config),
    ]
    if config.allowed_origins:
        from starlette.middleware.cors import CORSMiddleware

        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=listed_origins(config),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After", "X-Prefix-Hash"],
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
        allowed = ", ".join(_allowed(request))
        known = MethodNotAllowed(f"{where} is not allowed.", hint=f"Use {allowed}.")
        response = error_response(request, known)
        response.headers["Allow"] = allowed
        return response
    else:
        known = InvalidArgument(f"{where} failed: {error.detail}.")
    response = await _known_error(request, known)
    response.headers.update(error.headers or {})
    return response


def _allowed(request: Request) -> list[str]:
    """Return the methods that there are routes for, at the path of `request`."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    at_path = [route for route in routes if route.path_regex.match(request.url.path)]
    return sorted({method for route in at_path for method in route.methods or ()})
