"""Which dialect a request speaks, told by its path and headers: errors are answered in its own shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lib_mlx.server.openai import common as openai

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from lib_mlx.errors import LibMlxError


def error_shape(request: Request) -> Callable[[LibMlxError], dict[str, Any]]:  # noqa: ARG001
    """Return what renders an error as the client of `request` expects it."""
    return openai.error_body
