"""`GET /`: who gets the page, and the headers it comes with."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx2
import pytest

import lib_mlx

if TYPE_CHECKING:
    from pathlib import Path

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
HTML = {"Accept": CHROME}
GREETING = "Ollama is running"


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        (CHROME, True),
        ("text/html", True),
        ("TEXT/HTML; charset=utf-8", True),
        ("text/html, */*", True),
        ("text/plain;q=0.5, text/html;q=0.6", True),
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/*", False),
        ("application/json", False),
        ("text/html, text/plain", False),
        ("text/html;q=0.5, text/plain", False),
        ("text/html;q=0.5, */*", False),
        ("text/html;q=0", False),
        ("text/html;q=none", False),
        (",;,;q", False),
    ],
)
def test_browsers_get_the_page(http: httpx2.Client, accept: str | None, page: bool) -> None:
    """It is for those who name HTML and like it best; all others are greeted as Ollama greets."""
    http.headers.pop("accept", None)
    answer = http.get("/", headers={} if accept is None else {"Accept": accept})
    assert (answer.status_code, answer.headers["vary"]) == (200, "Accept")
    assert answer.headers["content-type"] == f"text/{'html' if page else 'plain'}; charset=utf-8"
    assert answer.text.startswith("<!doctype html>") if page else answer.text == GREETING


def test_head(http: httpx2.Client) -> None:
    """It has the headers of the page, and no body."""
    head, page = http.head("/", headers=HTML), http.get("/", headers=HTML)
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": "", "x-request-id": "", "request-id": ""} == {
        **page.headers,
        "date": "",
        "x-request-id": "",
        "request-id": "",
    }


def test_it_is_sent_once(http: httpx2.Client) -> None:
    """Who has it already is told so, with the same policy; who has another one gets it."""
    page = http.get("/", headers=HTML)
    tag = page.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = http.get("/", headers={**HTML, "If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["content-security-policy"] == page.headers["content-security-policy"]
    assert http.get("/", headers={**HTML, "If-None-Match": '"other"'}).status_code == 200


def test_the_policy(http: httpx2.Client) -> None:
    """Nothing is allowed but the page's own script and style, by their hashes, and its own server."""
    page = http.get("/", headers=HTML)
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": source(page.text, "script"),
        "style-src": source(page.text, "style"),
        "connect-src": "'self'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    assert page.headers["cache-control"] == "no-cache"
    assert "access-control-allow-origin" not in page.headers


def source(html: str, tag: str) -> str:
    """What a policy calls the only element `tag` of a page."""
    (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_it_is_one_file(http: httpx2.Client) -> None:
    """It refers to nothing outside, and nothing in it makes markup of text."""
    html = http.get("/", headers=HTML).text
    # Of the addresses in it one is a name of XML's, one an expression.
    assert set(re.findall(r"https?://[\w.]+", html)) == {"http://www.w3.org"}
    assert not re.search(
        r"@import|url\(|\bimport\b.*from|\bsrc=\"|innerHTML|outerHTML|insertAdjacent|document\.write", html
    )
    assert not re.search(r"\beval\(|new Function|\son\w+=\"|\sstyle=\"", html)
    assert len(html) < 150_000


def test_the_page_needs_no_key(crafted: Path) -> None:
    """All but the page is behind the key, the greeting too."""
    with (
        lib_mlx.load_model(crafted) as model,
        model.start_server(api_key="secret") as server,
        httpx2.Client(base_url=server.base_url) as client,
    ):
        page = client.get("/", headers=HTML)
        assert (page.status_code, "secret" in page.text) == (200, False)
        assert client.head("/", headers=HTML).status_code == 200
        for method, path in (("POST", "/"), ("DELETE", "/"), ("GET", "/v1/status"), ("GET", "/v1/models")):
            assert client.request(method, path, headers=HTML).status_code == 401
        greeted = client.get("/")
        assert (greeted.status_code, greeted.json()["error"]["code"]) == (401, "unauthorized")
        assert client.get("/", headers={"x-api-key": "secret"}).text == GREETING


def test_foreign_names_do_not_get_it(http: httpx2.Client) -> None:
    """The Host header is looked at before the page is given out."""
    assert http.get("/", headers={**HTML, "Host": "evil.example"}).status_code == 403


def test_nothing_is_read_before_somebody_asks() -> None:
    """A server that no browser looks at does not read the page's files."""
    code = (
        "from lib_mlx.server.web.page import load_page; import lib_mlx.server.app; print(load_page.cache_info().misses)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"
