"""Requests as forms: the JSON is one part, files are others."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.errors import InvalidArgument
from lib_mlx.server.multipart import attach

if TYPE_CHECKING:
    import httpx2

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


def image(url: str) -> dict[str, Any]:
    """A conversation with an image."""
    parts = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": parts}]}


def test_a_form_without_files(http: httpx2.Client) -> None:
    """It is the same request as its JSON."""
    answer = http.post(CHAT, files={"request": (None, json.dumps(HELLO), "application/json")})
    assert answer.json()["choices"][0]["message"]["content"]
    as_file = http.post(CHAT, files={"request": ("request.json", json.dumps(HELLO))})
    assert as_file.status_code == 200


def test_a_file_takes_its_place() -> None:
    """A reference becomes the file's data, wherever data or a URL may stand; text is left alone."""
    files = {"cat": "data:image/png;base64,AAAA"}
    value = {"a": [{"image_url": {"url": "attachment:cat"}}], "images": ["attachment:cat"], "text": "attachment:cat"}
    expected = {"a": [{"image_url": {"url": files["cat"]}}], "images": [files["cat"]], "text": "attachment:cat"}
    assert attach(value, files) == expected
    with pytest.raises(InvalidArgument, match="no part 'dog'"):
        attach({"url": "attachment:dog"}, {})
    with pytest.raises(InvalidArgument, match="'cat' is not referred to"):
        attach({"text": "attachment:cat"}, files)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"other": (None, "{}")}, "invalid_json"),
        ({"request": (None, "{")}, "invalid_json"),
        ({"request": (None, json.dumps(HELLO)), "cat": ("cat.png", b"x")}, "invalid_argument"),
        ({"request": (None, json.dumps(image("attachment:dog"))), "cat": ("cat.png", b"x")}, "invalid_argument"),
        ({"request": (None, json.dumps(image("attachment:cat"))), "cat": ("cat.png", b"x")}, "unsupported_feature"),
    ],
)
def test_bad_forms(http: httpx2.Client, parts: Any, code: str) -> None:
    """A form without a request, with a file nobody refers to, or with an image for a text model is refused."""
    answer = http.post(CHAT, files=parts)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize("content", [b"", b"--x", b"--x\r\n\r\n--x--", b"--x\r\nX: y\r\n\r\n"])
@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_what_is_no_form(http: httpx2.Client, content: bytes, kind: str) -> None:
    """It is a client's error."""
    answer = http.post(CHAT, content=content, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("charset", ["undefined", "punycode", "unicode_escape", "utf-16"])
def test_a_form_in_another_charset(http: httpx2.Client, charset: str) -> None:
    """It is refused; Python has codecs that are none of text's."""
    part = b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"messages": []}\\ud800\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    answer = http.post(CHAT, content=part, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert "UTF-8" in answer.json()["error"]["message"]


def test_a_form_over_the_limit(http: httpx2.Client) -> None:
    """Its files count, and leave no temporary file behind."""
    before = set(Path(tempfile.gettempdir()).iterdir())
    answer = http.post(CHAT, files={"request": (None, json.dumps(HELLO)), "big": ("big", b"x" * (33 << 20))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    assert not {path for path in Path(tempfile.gettempdir()).iterdir() if path.is_file()} - before
