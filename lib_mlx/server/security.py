"""Who may talk to the server: the names it is reached by, the web pages that call it, and the key.

A page from anywhere can make the browser send requests to localhost. Its own origin then stands in `Origin`; and
if its author points a name of theirs to 127.0.0.1 (DNS rebinding), that name stands in `Host`.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from typing import TYPE_CHECKING

from starlette.requests import Request

from lib_mlx.errors import ForbiddenHost, ForbiddenOrigin, LibMlxError, Unauthorized
from lib_mlx.server.dialects import error_response
from lib_mlx.server.web.page import is_page

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Receive, Scope, Send

    from lib_mlx.config import ServerConfig

_OPEN = frozenset({"/health", "/v1/health", "/livez", "/api/health"})
"""Paths that need no key: whoever restarts a server must see whether it lives."""
_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::\d*)?")
"""A name or an address, the latter in brackets if it has colons, and a port."""


class SecurityMiddleware:
    """Refuses requests by their Host and Origin headers."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app = app
        self._hosts = _names(config)
        self._origins = set(listed_origins(config))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            request = Request(scope)
            try:
                self._check(request.headers)
            except LibMlxError as error:
                await error_response(request, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_known(_host_name(host)):
            raise ForbiddenHost(
                f"The server is not to be reached as {host!r}.",
                hint="Use its address, or start it with this name in allowed_hosts.",
            )
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or _origin(origin) in self._origins:
            return
        if _origin(origin).partition("://")[2] != host.strip().lower():
            raise ForbiddenOrigin(
                f"Pages of {origin!r} may not call this server.", hint="Start it with this origin in allowed_origins."
            )

    def _is_known(self, name: str) -> bool:
        return "*" in self._hosts or name in self._hosts or name.endswith(".localhost") or _is_address(name)


class KeyMiddleware:
    """Demands the API key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            request = Request(scope)
            asked = not is_page(request.method, scope["path"], request.headers)  # it asks for the key itself
            if asked and not hmac.compare_digest(_given_key(request.headers), self._key):
                error = Unauthorized(
                    "The API key is missing or wrong.", hint="Send Authorization: Bearer KEY, or x-api-key: KEY."
                )
                response = error_response(request, error)
                response.headers["WWW-Authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def listed_origins(config: ServerConfig) -> list[str]:
    """Return the pages that may call the server, as browsers write their origins."""
    return [_origin(origin) for origin in config.allowed_origins]


def _given_key(headers: Headers) -> bytes:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return given.encode("utf-8", "surrogateescape")


def _names(config: ServerConfig) -> frozenset[str]:
    names = {"localhost", config.host.lower(), *(host.lower() for host in config.allowed_hosts)}
    if config.uds is None and not _is_loopback(config.host):
        machine = socket.gethostname().lower()
        names |= {machine, f"{machine}.local"}
    return frozenset(names)


def _host_name(host: str) -> str:
    """Return the Host header without its port, "" if it is none."""
    found = _HOST.fullmatch(host.strip().lower())
    return (found[1] or found[2] or "") if found else ""


def _is_address(name: str) -> bool:
    """Whether `name` is an IP address: no name that somebody else could point here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _origin(origin: str) -> str:
    return origin.strip().lower().rstrip("/")
