"""What our own code did not foresee."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx2

ASKED = {"model": "crafted", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("path", "broken"),
    [
        ("/v1/chat/completions", "lib_mlx.server.openai.chat_request.to_generation"),
        ("/v1/messages", "lib_mlx.server.anthropic.endpoints.to_generation"),
    ],
)
def test_a_defect(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str, broken: str
) -> None:
    """It is a 500 in the dialect's shape, logged once with its traceback; the server goes on, and no slot is lost."""

    def fail(*_: object) -> None:
        raise TypeError("boom")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(broken, fail)
        answer = http.post(path, json=ASKED)
    assert answer.status_code == 500
    assert "TypeError: boom" in answer.json()["error"]["message"]
    (record,) = caplog.records
    assert record.exc_info
    assert http.post(path, json=ASKED).status_code == 200
    assert http.get("/health").json()["in_flight"] == 0


class PanicException(BaseException):
    """What Rust's panics are in Python."""


@pytest.mark.parametrize(
    ("path", "broken"),
    [
        ("/v1/chat/completions", "lib_mlx.engine.engine.EngineModel.prepare"),
        ("/v1/embeddings", "lib_mlx.engine.engine.EngineModel.embed"),
    ],
)
def test_a_panic(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, path: str, broken: str) -> None:
    """A panic in the tokenizer, which is no Exception, ends neither the event loop nor a slot."""

    def panic(*_: object, **__: object) -> None:
        raise PanicException("called `unwrap()`")

    asked = ASKED if "chat" in path else {"model": "crafted", "input": "hello"}
    with monkeypatch.context() as patch:
        patch.setattr(broken, panic)
        answer = http.post(path, json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "PanicException" in answer.json()["error"]["message"]
    assert http.post("/v1/chat/completions", json=ASKED).status_code == 200
    assert http.get("/health").json()["in_flight"] == 0
