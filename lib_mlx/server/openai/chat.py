"""Chat Completions: events folded into a body or into chunks (developers.openai.com/api/reference/resources/chat).

The fold is pure: the same events give the same content either way.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from lib_mlx.server.openai.common import chat_usage, error_body, new_id
from lib_mlx.server.sse import DONE, sse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lib_mlx.generation import GenerationEvent


class ChatFold:
    """One answer under construction. `add` events; read `chunks` as they come, or the `body` at the end."""

    def __init__(self, model: str, *, include_usage: bool = False) -> None:
        self._head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._finished: Finished | None = None

    def opening(self) -> list[dict[str, Any]]:
        """Return the stream's first chunk, the only one with a role."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def add(self, event: GenerationEvent) -> list[dict[str, Any]]:
        """Take one event in and return its chunks.

        Raises:
            LibMlxError: the event is `Failed`.
        """
        match event:
            case TextDelta(text):
                self._text.append(text)
                return [self._chunk({"content": text})]
            case ReasoningDelta(text):
                self._reasoning.append(text)
                return [self._chunk({"reasoning_content": text})]
            case ToolCallDelta():
                return [self._chunk({"tool_calls": [self._call(event)]})]
            case Finished():
                self._finished = event
                return self._closing(event)
            case Failed(error):
                raise error

    def body(self) -> dict[str, Any]:
        """Return the whole answer; all events must have been added."""
        if self._finished is None:
            raise RuntimeError("the answer is not finished")
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text), "refusal": None}
        if self._calls:
            message["tool_calls"] = self._calls
            message["content"] = message["content"] or None
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finished.reason}
        usage = chat_usage(self._finished.usage)
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def _call(self, delta: ToolCallDelta) -> dict[str, Any]:
        function = {"name": delta.name, "arguments": delta.arguments}
        call = {"id": delta.id, "type": "function", "function": function}
        self._calls.append(call)
        return {"index": delta.index, **call}

    def _closing(self, finished: Finished) -> list[dict[str, Any]]:
        chunks = [self._chunk({}, finished.reason)]
        if self._include_usage:
            chunks.append(self._envelope([], chat_usage(finished.usage)))
        return chunks

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return self._envelope([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])

    def _envelope(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        return {**chunk, "usage": usage} if self._include_usage else chunk


def encode(chunks: Iterable[dict[str, Any]]) -> bytes:
    """Return chunks as server-sent events."""
    return b"".join(sse(chunk) for chunk in chunks)


def render(fold: ChatFold, events: list[GenerationEvent]) -> bytes:
    """Return the bytes of one engine step's events; the last step's end with `[DONE]`."""
    last = events[-1]
    if isinstance(last, Failed):
        chunks = [chunk for event in events[:-1] for chunk in fold.add(event)]
        return encode(chunks) + sse(error_body(last.error)) + DONE
    out = encode(chunk for event in events for chunk in fold.add(event))
    return out + DONE if isinstance(last, Finished) else out
