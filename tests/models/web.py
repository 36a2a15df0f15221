"""Small web servers that misbehave on purpose, for tests of downloads."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Site:
    """What a server serves, and what it was asked."""

    pages: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """More headers of the answer for a path."""
    status: dict[str, int] = field(default_factory=dict)
    """Answer a path with this status."""
    ranges: bool = True
    """Honour Range."""
    cut_after: list[int] = field(default_factory=list)
    """Close the next answers after so many bytes of body."""
    login: str = ""
    """The Authorization header to demand."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and Range of each request."""
    url: str = ""


@contextlib.contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Run a server for `site` on a free port; set `site.url`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path, wanted = self.path.partition("?")[0], self.headers.get("Range", "")
            site.requests.append((self.command, self.path, wanted))
            content = site.pages.get(path)
            status = site.status.get(path, 200 if content is not None else 404)
            if site.login and self.headers.get("Authorization") != site.login:
                status = 401
            if status != 200 or content is None:
                self.send_response(status)
                for key, value in site.headers.get(path, {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(match[1]) if site.ranges and (match := re.fullmatch(r"bytes=(\d+)-.*", wanted)) else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Type", site.types.get(path, "application/octet-stream"))
            self.send_header("Content-Length", str(len(content) - start))
            for key, value in site.headers.get(path, {}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                end = start + site.cut_after.pop(0) if site.cut_after else len(content)
                self.wfile.write(content[start:end])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
