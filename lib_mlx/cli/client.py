"""Asking a running server, for commands that look after it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from lib_mlx.errors import Internal, NotFound, error_from_json

if TYPE_CHECKING:
    from http.client import HTTPConnection

    from lib_mlx.service.state import ServiceState

_TIMEOUT_S = 600.0  # a load may take its time


class Client:
    """Speaks JSON to one server: of a service, or at a URL."""

    def __init__(
        self, base_url: str, api_key: str | None = None, uds: str | None = None, *, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._uds = uds
        self._timeout_s = timeout_s

    @classmethod
    def of(cls, state: ServiceState, *, timeout_s: float = _TIMEOUT_S) -> Client:
        """Return a client of a service; raises NotFound if it does not run."""
        if state.status != "running" or state.base_url is None:
            raise NotFound(f"The service {state.name!r} is {state.status}.", hint="Start it with `lib-mlx start`.")
        return cls(state.base_url, state.api_key, state.uds, timeout_s=timeout_s)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the decoded answer.

        Raises:
            LibMlxError: what the server refuses with, or NotFound if it cannot be reached.
        """
        status, value = self._exchange(method, path, body)
        if status >= 400:
            raise _error(value)
        return value

    def health(self) -> str:
        """Return what the server says of itself: `ok`, or why it takes no requests; raises as `ask` does."""
        _, value = self._exchange("GET", "/health")
        if not isinstance(value, dict) or not isinstance(value.get("status"), str):
            raise _error(value)
        return cast("str", value["status"])

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        from http.client import HTTPException

        connection = connect(self._base_url, self._timeout_s)
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        content = None
        if body is not None:
            content, headers["Content-Type"] = json.dumps(body), "application/json"
        try:
            if self._uds is not None:
                self._open_socket(connection, self._uds)
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            value = json.loads(answer.read())
        except (OSError, ValueError, HTTPException) as error:
            raise NotFound(f"{self._uds or self._base_url} does not answer: {error}.", hint="Is it running?") from None
        finally:
            connection.close()
        return answer.status, value

    def _open_socket(self, connection: HTTPConnection, path: str) -> None:
        import socket

        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(self._timeout_s)
        connection.sock.connect(path)


def connect(base_url: str, timeout_s: float = _TIMEOUT_S) -> HTTPConnection:
    """Return a connection to the server at `base_url`; it opens at the first request."""
    from http.client import HTTPConnection, HTTPSConnection

    parts = urlsplit(base_url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    return kind(parts.hostname or "localhost", parts.port, timeout=timeout_s)


def _error(value: Any) -> Exception:
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return Internal("The server refused, and did not say why.")
    return error_from_json({"code": error.get("code", ""), "message": error.get("message", ""), "hint": ""})
