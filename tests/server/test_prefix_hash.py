"""What a balancer is told of a conversation's beginning."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2


def test_a_conversation_keeps_its_hash(http: httpx2.Client) -> None:
    """Every turn of a conversation has the same one in each dialect, streamed or not, and others have another."""
    first = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    later = [*first, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "hello"}]
    other = [{"role": "user", "content": "hello"}]
    chat = "/v1/chat/completions"
    hashes = [
        http.post(chat, json={"messages": first}).headers["x-prefix-hash"],
        http.post(chat, json={"messages": later, "stream": True}).headers["x-prefix-hash"],
        http.post("/api/chat", json={"model": "crafted", "messages": later}).headers["x-prefix-hash"],
        http.post("/v1/responses", json={"input": "hello", "instructions": "be kind"}).headers["x-prefix-hash"],
    ]
    assert set(hashes) == {hashlib.sha256(b"system\nbe kind\0user\nhello\0").hexdigest()[:16]}
    assert http.post(chat, json={"messages": other}).headers["x-prefix-hash"] not in hashes
    assert "x-prefix-hash" not in http.get("/health").headers


def test_a_prompt_has_one(http: httpx2.Client) -> None:
    """Of text that is continued as it is, the first 256 characters count; of tokens as many."""
    hashes = [
        http.post("/v1/completions", json={"prompt": text, "max_tokens": 1}).headers["x-prefix-hash"]
        for text in ("hello " * 50, "hello " * 60, [1, 2, 3])
    ]
    assert hashes[0] == hashes[1] == hashlib.sha256(("hello " * 50)[:256].encode()).hexdigest()[:16]
    assert hashes[2] == hashlib.sha256(b"1 2 3").hexdigest()[:16]
