"""`GET /`: the page, for browsers; the greeting that Ollama's clients look for, for all others.

The page is one document without a build step: the files beside this one, joined when it is first asked for. It holds
no secret and needs no key; its scripts ask the server as any other client does.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

from lib_mlx.server.ollama.models import greet
from lib_mlx.server.openapi import described

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.datastructures import Headers
    from starlette.requests import Request

PATH = "/"
_FOLDER = Path(__file__).parent
_STYLES = ("page.css",)
_SCRIPTS = (
    "wire.js",
    "markdown.js",
    "basics.js",
    "settings.js",
    "conversation.js",
    "exchanges.js",
    "inspector.js",
    "server.js",
    "page.js",
)
_POLICY = (
    "default-src 'none'",
    "script-src {script}",
    "style-src {style}",
    "connect-src 'self'",
    "img-src data: blob:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # What browsers offer beyond: no string becomes markup or code, whatever a script does.
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)


@dataclass(frozen=True)
class Page:
    """The document and the headers it goes with."""

    body: bytes
    headers: Mapping[str, str]


@described(answers=("text/html", "text/plain"))
async def root(request: Request) -> Response:
    """`GET /`: the page for browsers; "Ollama is running" for everyone else."""
    if not prefers_html(request.headers):
        response = await greet(request)
        response.headers["Vary"] = "Accept"
        return response
    page = await asyncio.to_thread(load_page)
    if page.headers["ETag"] in _known_tags(request.headers):
        return Response(status_code=304, headers=page.headers)
    return Response(page.body, media_type="text/html", headers=page.headers)


@cache
def load_page() -> Page:
    """Return the page; reads files, once."""
    style = _read(_STYLES)
    script = _read(_SCRIPTS)
    html = _read(("page.html",)).replace("/* style */", style).replace("/* script */", script)
    body = html.encode()
    policy = "; ".join(_POLICY).format(script=_source(script), style=_source(style))
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }
    return Page(body, headers)


def prefers_html(headers: Headers) -> bool:
    """Whether an Accept header likes HTML better than plain text; naming it is liking it, `*/*` is not."""
    ranges = [_range(one) for one in ",".join(headers.getlist("accept")).split(",")]
    html = _liking(ranges, "text/html")
    return html[0] > 0 and html > _liking(ranges, "text/plain")


def is_page(method: str, path: str, headers: Headers) -> bool:
    """Whether a request is answered with the page."""
    return path == PATH and method in {"GET", "HEAD"} and prefers_html(headers)


def _range(text: str) -> tuple[str, float]:
    """Return a media range and its weight; one that cannot be read weighs nothing."""
    kind, *parameters = [part.strip().lower() for part in text.split(";")]
    weight = next((value for name, _, value in (part.partition("=") for part in parameters) if name == "q"), "1")
    try:
        return kind, min(max(float(weight), 0.0), 1.0)
    except ValueError:
        return kind, 0.0


def _liking(ranges: list[tuple[str, float]], media_type: str) -> tuple[float, int]:
    """Return how much a type is wanted, and how exactly the range names it that says so."""
    kind = media_type.partition("/")[0]
    for exactness, name in ((2, media_type), (1, f"{kind}/*"), (0, "*/*")):
        weights = [weight for named, weight in ranges if named == name]
        if weights:
            return max(weights), exactness
    return 0.0, 0


def _known_tags(headers: Headers) -> set[str]:
    tags = ",".join(headers.getlist("if-none-match")).split(",")
    return {tag.strip().removeprefix("W/") for tag in tags}


def _read(names: tuple[str, ...]) -> str:
    return "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def _source(text: str) -> str:
    """Return what a policy calls an inline script or style of this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def routes() -> list[Route]:
    """Return the route."""
    return [Route(PATH, root, methods=["GET"])]
