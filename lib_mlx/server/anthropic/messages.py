"""Messages: events folded into a message and into typed stream events (platform.claude.com/docs/en/api/messages).

The fold is pure: the events of the stream add up to the message that a request without `stream` gets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from lib_mlx.server.anthropic.common import cumulative_usage, error_body, message_usage, signature, tool_use_id
from lib_mlx.server.fields import new_id
from lib_mlx.server.sse import sse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lib_mlx.generation import GenerationEvent

Event = dict[str, Any]


class MessagesFold:
    """One message under construction: `opening` once, then `add` each event; `message` is its present state.

    Args:
        model: the model's name.
        prompt_tokens: how long the prompt is.
        max_tokens: the client's limit; 0: nothing is said.
        omits_thinking: whether the text of reasoning is not shown, but only carried by its signature.
        request_id: stands in the event of an error.
    """

    def __init__(
        self,
        model: str,
        *,
        prompt_tokens: int,
        max_tokens: int,
        omits_thinking: bool = False,
        request_id: str | None = None,
    ) -> None:
        self.message: dict[str, Any] = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
            "usage": message_usage(Usage(prompt=prompt_tokens)),
        }
        self._max_tokens = max_tokens
        self._omits_thinking = omits_thinking
        self._request_id = request_id
        self._open: tuple[str, int] | None = None  # the last block's kind and, of a call, its number
        self._pieces: list[str] = []  # its text so far

    def opening(self) -> list[Event]:
        """Return the events that precede all content."""
        return [{"type": "message_start", "message": {**self.message, "content": []}}, {"type": "ping"}]

    def add(self, event: GenerationEvent) -> list[Event]:
        """Take one event in and return the stream events it makes."""
        match event:
            case Finished():
                return self._finish(event)
            case Failed(error):
                return [error_body(error, self._request_id)]
            case _ if self._max_tokens == 0:
                return []
            case TextDelta(text):
                return [*self._switch("text", {"text": ""}), self._delta("text_delta", "text", text)]
            case ReasoningDelta(text):
                events = self._switch("thinking", {"thinking": "", "signature": ""})
                delta = self._delta("thinking_delta", "thinking", text)
                return events if self._omits_thinking else [*events, delta]
            case ToolCallDelta():
                call = {"id": tool_use_id(event.id), "name": event.name, "input": {}}
                events = self._switch("tool_use", call, event.index)
                return [*events, self._delta("input_json_delta", "partial_json", event.arguments)]

    # Blocks

    def _switch(self, kind: str, empty: Event, number: int = 0) -> list[Event]:
        """Make sure that the open block is a `kind`, which begins as `empty`, and the `number`th of these."""
        if self._open == (kind, number):
            return []
        events = self._close()
        self._open, self._pieces = (kind, number), []
        self.message["content"].append({"type": kind, **empty})
        return [*events, self._event("content_block_start", content_block={"type": kind, **empty})]

    def _close(self) -> list[Event]:
        """Close the open block, if there is one."""
        if self._open is None:
            return []
        block, text = self.message["content"][-1], "".join(self._pieces)
        events = []
        match self._open[0]:
            case "text":
                block["text"] = text
            case "thinking":
                block["thinking"] = "" if self._omits_thinking else text
                block["signature"] = signature(text if self._omits_thinking else "")
                delta = {"type": "signature_delta", "signature": block["signature"]}
                events = [self._event("content_block_delta", delta=delta)]
            case _:
                block["input"] = orjson.Fragment(text)  # JSON can say what orjson cannot: numbers of any size
        self._open = None
        return [*events, self._event("content_block_stop")]

    def _delta(self, kind: str, name: str, text: str) -> Event:
        self._pieces.append(text)
        return self._event("content_block_delta", delta={"type": kind, name: text})

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "index": len(self.message["content"]) - 1, **fields}

    # The end

    def _finish(self, finished: Finished) -> list[Event]:
        usage = finished.usage if self._max_tokens else replace(finished.usage, completion=0, reasoning=0)
        events = self._close()
        end = {"stop_reason": self._stop_reason(finished), "stop_sequence": finished.stop, "stop_details": None}
        self.message |= {**end, "usage": message_usage(usage)}
        delta = {"type": "message_delta", "delta": {**end, "container": None}, "usage": cumulative_usage(usage)}
        return [*events, delta, {"type": "message_stop"}]

    def _stop_reason(self, finished: Finished) -> str:
        if finished.usage.completion >= self._max_tokens and (finished.reason == "length" or not self._max_tokens):
            return "max_tokens"
        if finished.reason == "length":
            return "model_context_window_exceeded"
        if finished.reason == "tool_calls":
            return "tool_use"
        return "stop_sequence" if finished.stop is not None else "end_turn"


def encode(events: Iterable[Event]) -> bytes:
    """Return events as server-sent events, each named by its type."""
    return b"".join(sse(event, event["type"]) for event in events)
