"""Asking a running server, for commands that look after it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lib_mlx.errors import Internal, NotFound, error_from_json

if TYPE_CHECKING:
    from http.client import HTTPConnection

    from lib_mlx.service.state import ServiceState

_TIMEOUT_S = 600.0  # a load may take its time


class Client:
    """Speaks JSON to one server: of a service, or at a URL."""

    def __init__(self, base_url: str, api_key: str | None = None, uds: str | None = None) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._uds = uds

    @classmethod
    def of(cls, state: ServiceState) -> Client:
        """Return a client of a service; raises NotFound if it does not run."""
        if state.status != "running" or state.base_url is None:
            raise NotFound(f"The service {state.name!r} is {state.status}.", hint="Start it with `lib-mlx start`.")
        return cls(state.base_url, state.api_key, state.uds)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the decoded answer.

        Raises:
            LibMlxError: what the server refuses with, or NotFound if it cannot be reached.
        """
        from http.client import HTTPException

        connection = self._connect()
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        content = None
        if body is not None:
            content, headers["Content-Type"] = json.dumps(body), "application/json"
        try:
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            value = json.loads(answer.read())
        except (OSError, ValueError, HTTPException) as error:
            raise NotFound(f"{self._uds or self._base_url} does not answer: {error}.", hint="Is it running?") from None
        finally:
            connection.close()
        if answer.status >= 400:
            raise _error(value)
        return value

    def _connect(self) -> HTTPConnection:
        import socket

        connection = connect(self._base_url)
        if self._uds is not None:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(self._uds)
        return connection


def connect(base_url: str) -> HTTPConnection:
    """Return a connection to the server at `base_url`; it opens at the first request."""
    from http.client import HTTPConnection, HTTPSConnection

    parts = urlsplit(base_url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    return kind(parts.hostname or "localhost", parts.port, timeout=_TIMEOUT_S)


def _error(value: Any) -> Exception:
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return Internal("The server refused, and did not say why.")
    return error_from_json({"code": error.get("code", ""), "message": error.get("message", ""), "hint": ""})
