"""Images that a request names by URL: fetched only where the server's host allows it.

A server on this machine sees what its clients may not: addresses of the local network, of cloud metadata, files. So
names are resolved first, every address is looked at, and the connection goes to the address that was looked at; the
same again for each redirect.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import os
import socket
import stat
import threading
import time
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Sound
from lib_mlx.models.fetch import tls_context

if TYPE_CHECKING:
    from lib_mlx.config import ServerConfig
    from lib_mlx.generation import Attachment, GenerationRequest, MediaKind, Message

MAX_BYTES = 32 << 20
TIME_S = 15.0
_REDIRECTS = 3
_PARALLEL = 4
_CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_ASSIGNED = ipaddress.ip_network("2000::/3")  # what else Python calls global stands for this machine or site too


class _Refused(Exception):
    """Why a URL is not read; the text is for the client."""


class ImageFetcher:
    """Fetches the images of requests, as far as `config` allows."""

    def __init__(self, config: ServerConfig) -> None:
        self._urls = config.image_urls
        self._folders = [Path(folder).resolve() for folder in config.allowed_image_paths]
        self._turn = asyncio.Semaphore(_PARALLEL)

    async def resolve(self, request: GenerationRequest) -> GenerationRequest:
        """Return `request` with the content of every image.

        Raises:
            UnsupportedFeature: such URLs are not read here.
            InvalidArgument: the image cannot be had.
        """
        if all(isinstance(one.source, bytes) for one in request.attachments):
            return request
        return replace(request, messages=tuple([await self._message(message) for message in request.messages]))

    async def _message(self, message: Message) -> Message:
        parts = [part if isinstance(part, str) else await self._fetched(part) for part in message.parts]
        return replace(message, parts=tuple(parts))

    async def _fetched(self, image: Attachment) -> Attachment:
        if isinstance(image, Sound) or isinstance(image.source, bytes):
            return image
        source = image.source
        local = source.startswith(("/", "file:", "FILE:"))
        if not (self._folders if local else self._urls != "none"):
            key = "allowed_image_paths" if local else "image_urls"
            raise UnsupportedFeature(
                f"This server reads no {image.kind}s from {'files' if local else 'URLs'}.",
                hint=f"Send the {image.kind} itself (base64), or start the server with {key!r}.",
                param=image.param,
            )
        async with self._turn:
            try:
                content = await asyncio.to_thread(
                    lambda: self._read_file(source) if local else self._fetch(source, image.kind)
                )
            except _Refused as refusal:
                raise InvalidArgument(
                    f"The {image.kind} cannot be read: {refusal}.",
                    hint=f"Send the {image.kind} itself.",
                    param=image.param,
                ) from None
        return replace(image, source=content)

    def _read_file(self, url: str) -> bytes:
        parts = urllib.parse.urlsplit(url)
        if parts.netloc not in {"", "localhost"}:
            raise _Refused("a file URL names no other machine")
        try:
            path = Path(urllib.parse.unquote(parts.path) if parts.scheme else url).resolve(strict=True)
            if not any(path.is_relative_to(folder) for folder in self._folders):
                raise _Refused("it is in none of the folders that are allowed")
            # Links were followed above; what has become one since is not.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise _Refused("it is no file")
                return _bounded(file.read(MAX_BYTES + 1))
        except (OSError, ValueError):
            raise _Refused("there is no such file") from None

    def _fetch(self, url: str, what: MediaKind) -> bytes:
        until = time.monotonic() + TIME_S
        try:
            for _ in range(_REDIRECTS + 1):
                moved, content = self._get(url, what, until)
                if moved is None:
                    return content
                url = urllib.parse.urljoin(url, moved)
        except (OSError, http.client.HTTPException, ValueError):
            raise _Refused("it did not come") from None
        raise _Refused("it was moved too often")

    def _get(self, url: str, what: MediaKind, until: float) -> tuple[str | None, bytes]:
        """Return where the URL has moved, or its content."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise _Refused("it is no http(s) URL without a user")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        connection = http.client.HTTPConnection(parts.hostname, port)
        end: threading.Timer | None = None
        try:
            wire = socket.create_connection((self._address(parts.hostname, port), port), timeout=_left(until))
            if parts.scheme == "https":
                wire = tls_context().wrap_socket(wire, server_hostname=parts.hostname)
            connection.sock = wire
            # A socket's own timeout begins anew with each byte, and a server may send one now and then for ever.
            end = threading.Timer(_left(until), _hang_up, [wire])
            end.daemon = True
            end.start()
            target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request("GET", target, headers={"User-Agent": "lib-mlx", "Accept": f"{what}/*"})
            answer = connection.getresponse()
            _left(until)  # what came may have been cut off because we hung up
            if answer.status in {301, 302, 303, 307, 308}:
                return answer.headers.get("Location", ""), b""
            if answer.status != 200:
                raise _Refused(f"the answer was {answer.status}")
            kind = answer.headers.get_content_type()
            if not kind.startswith(f"{what}/") and kind != "application/octet-stream":
                raise _Refused(f"it is {kind!r}")
            content = _body(answer)
            _left(until)
            return None, content
        finally:
            if end is not None:
                end.cancel()
            connection.close()

    def _address(self, host: str, port: int) -> str:
        """Return the address to connect to; raises _Refused if the name stands for any that is not allowed."""
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if self._urls != "any" and not all(map(_is_public, found)):
            raise _Refused("it is at a private address")
        return found[0]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return _is_public(str(embedded))
        if ip not in _ASSIGNED:
            return False
    return ip.is_global and not ip.is_multicast


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _hang_up(wire: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended
        wire.shutdown(socket.SHUT_RDWR)


def _body(answer: http.client.HTTPResponse) -> bytes:
    content = bytearray()
    while len(content) <= MAX_BYTES and (chunk := answer.read1(_CHUNK)):
        content += chunk
    return _bounded(bytes(content))


def _bounded(content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise _Refused(f"it has more than {MAX_BYTES} bytes")
    return content
