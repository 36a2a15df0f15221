"""Which dialect a request speaks, told by its path and headers: errors are answered in its own shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lib_mlx.server.http import JsonResponse
from lib_mlx.server.ollama import common as ollama
from lib_mlx.server.openai import common as openai

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.errors import LibMlxError


def error_shape(request: Request) -> Callable[[LibMlxError], dict[str, Any]]:
    """Return what renders an error as the client of `request` expects it."""
    return ollama.error_body if request.url.path.startswith("/api/") else openai.error_body


def error_response(request: Request, error: LibMlxError) -> Response:
    """Return `error` as the answer to `request`."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else {}
    return JsonResponse(error_shape(request)(error), error.http_status, headers)
