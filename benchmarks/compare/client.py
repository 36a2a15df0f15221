"""A client of streamed chat completions that does little more than note when each piece of text came."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"


@dataclass
class Answer:
    """When the request was sent and each piece of text came (`time.perf_counter`), and the text."""

    sent: float
    times: list[float] = field(default_factory=list)
    text: str = ""

    @property
    def wait(self) -> float:
        """Seconds to the first token.

        Raises:
            RuntimeError: there was none.
        """
        if not self.times:
            raise RuntimeError("the server sent no text")
        return self.times[0] - self.sent


async def ask(
    port: int, prompt: str, tokens: int, *, until: Callable[[Answer], bool] = lambda _: False, model: str = ""
) -> Answer:
    """Stream a greedy answer; leave early, by closing the connection, as soon as `until` says so.

    Raises:
        OSError: there is no connection.
        RuntimeError: the server refused.
    """
    body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    body |= {"stream": True, "temperature": 0} | ({"model": model} if model else {})
    answer = Answer(time.perf_counter())
    reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 20)
    try:
        await _post(writer, json.dumps(body).encode())
        status = (await reader.readline()).split()
        if len(status) < 2 or status[1] != b"200":
            raise RuntimeError(f"the server answered {b' '.join(status).decode()!r}")
        while line := await reader.readline():
            piece = _text(line)
            if piece:
                answer.times.append(time.perf_counter())
                answer.text += piece
            if line.startswith(b"data: [DONE]") or until(answer):
                break
    finally:
        writer.close()
    return answer


async def _post(writer: asyncio.StreamWriter, body: bytes) -> None:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()


def _text(line: bytes) -> str:
    if not line.startswith(b"data: {"):
        return ""
    event = json.loads(line[6:])
    if "error" in event:
        raise RuntimeError(f"the server failed: {event['error']}")
    return "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices", []))


async def is_healthy(port: int) -> bool:
    """Whether GET /health is answered with 200."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(f"GET /health HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in await asyncio.wait_for(reader.readline(), 5)
        finally:
            writer.close()
    except (OSError, TimeoutError):
        return False
