"""Which dialect a request speaks, told by its path and headers: errors are answered in its own shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import PayloadTooLarge, RequestTimeout
from lib_mlx.server.anthropic import common as anthropic
from lib_mlx.server.http import JsonResponse
from lib_mlx.server.ollama import common as ollama
from lib_mlx.server.openai import common as openai

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.errors import LibMlxError


@dataclass(frozen=True)
class Dialect:
    """How to know a dialect, and its errors."""

    paths: tuple[str, ...]
    """Its routes are these or lie under them."""
    error_body: Callable[[LibMlxError, str | None], dict[str, Any]]
    """Renders an error, given the request's id."""
    header: str | None = None
    """A header that its clients alone send, to routes of other dialects too."""

    def speaks(self, request: Request) -> bool:
        """Whether `request` is in this dialect."""
        path = request.url.path
        under = any(path == root or path.startswith(f"{root}/") for root in self.paths)
        return under or (self.header is not None and self.header in request.headers)


_DIALECTS = (
    Dialect(("/anthropic", "/v1/messages"), anthropic.error_body, header="anthropic-version"),
    Dialect(("/api",), lambda error, _: ollama.error_body(error)),
    Dialect((), lambda error, _: openai.error_body(error)),
)
"""The first that fits; the last is for everyone else."""


def error_shape(request: Request) -> Callable[[LibMlxError], dict[str, Any]]:
    """Return what renders an error as the client of `request` expects it."""
    dialect = next((known for known in _DIALECTS if known.speaks(request)), _DIALECTS[-1])
    request_id = getattr(request.state, "request_id", None)
    return lambda error: dialect.error_body(error, request_id)


def error_response(request: Request, error: LibMlxError) -> Response:
    """Return `error` as the answer to `request`."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else {}
    if isinstance(error, (PayloadTooLarge, RequestTimeout)):  # the rest of the body is not waited for
        headers["Connection"] = "close"
    return JsonResponse(error_shape(request)(error), error.http_status, headers)
