"""Responses: events folded into a response object and into typed stream events (openresponses.org).

The fold is pure: the stream's terminal event carries the same object that a request without `stream` gets.
Each item is opened, streamed and closed before the next one opens, and so is each part of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from lib_mlx.errors import Cancelled
from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from lib_mlx.server.fields import new_id
from lib_mlx.server.grounding import grounding_of
from lib_mlx.server.openai.common import logprob_entry
from lib_mlx.server.openai.response_items import output_text
from lib_mlx.server.openai.response_object import usage_of
from lib_mlx.server.sse import sse

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.generation import GenerationEvent

Event = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


class ResponsesFold:
    """One response under construction: `opening` once, then `add` each event; `response` is its present state.

    Args:
        response: the object to fill, as `new_response` makes it.
        seal: makes the `encrypted_content` of reasoning, if it is asked for.
    """

    def __init__(self, response: dict[str, Any], seal: Callable[[str], str] | None = None) -> None:
        self.response = response
        self._seal = seal
        self._sequence = 0
        self._item: dict[str, Any] | None = None  # the open item, the last of the output
        self._deltas: list[str] = []  # its text so far
        self._logprobs: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """Whether the terminal event has been made."""
        return self.response["status"] not in {"queued", "in_progress"}

    def opening(self) -> list[Event]:
        """Return the events that precede all output."""
        return [self._snapshot("response.created"), self._snapshot(f"response.{self.response['status']}")]

    def add(self, event: GenerationEvent) -> list[Event]:
        """Take one event in and return the stream events it makes."""
        match event:
            case ReasoningDelta(text):
                return [*self._switch("reasoning"), self._text_delta("response.reasoning_text.delta", text)]
            case TextDelta(text, tokens):
                logprobs = [logprob_entry(token) for token in tokens]
                opened = self._switch("message")
                self._logprobs += logprobs
                return [*opened, self._text_delta("response.output_text.delta", text, logprobs=logprobs)]
            case ToolCallDelta():
                return self._call(event)
            case Finished():
                return self._finish(event)
            case Failed():
                return self._fail(event)

    # Items

    def _begin(self) -> list[Event]:
        """Leave the queue, if it is still in it."""
        if self.response["status"] != "queued":
            return []
        self.response["status"] = "in_progress"
        return [self._snapshot("response.in_progress")]

    def _switch(self, kind: str) -> list[Event]:
        """Make sure that the open item is a `kind`."""
        if self._item is not None and self._item["type"] == kind:
            return []
        return [*self._begin(), *self._close(), *self._open(kind)]

    def _open(self, kind: str) -> list[Event]:
        self._deltas, self._logprobs = [], []
        if kind == "reasoning":
            item = {"id": new_id("rs"), "type": kind, "status": "in_progress", "summary": [], "content": []}
        else:
            item = {"id": new_id("msg"), "type": kind, "role": "assistant", "status": "in_progress", "content": []}
        return [self._added(item), self._part("response.content_part.added")]

    def _close(self, status: Status = "completed") -> list[Event]:
        """Close the open item, if there is one."""
        if self._item is None:
            return []
        item = self._item
        events: list[Event] = []
        if item["type"] != "function_call":
            events += [self._text_done(), self._part("response.content_part.done")]
            item["content"] = [self._content()]
        if item["type"] == "reasoning" and self._seal is not None:
            item["encrypted_content"] = self._seal(item["content"][0]["text"])
        item["status"] = status
        events.append(self._item_event("response.output_item.done", item))
        self._item = None
        return events

    def _call(self, call: ToolCallDelta) -> list[Event]:
        item = {
            "id": new_id("fc"),
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        events = [*self._begin(), *self._close(), self._added(item)]
        place = {"item_id": item["id"], "output_index": self._index}
        events.append(self._event("response.function_call_arguments.delta", **place, delta=call.arguments))
        events.append(
            self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        )
        item["arguments"] = call.arguments
        return events + self._close()

    # The end

    def _finish(self, finished: Finished) -> list[Event]:
        cut = finished.reason == "length"
        if self._item is not None and self._item["type"] == "message":
            self._item |= grounding_of(finished.grounded)
        events = [*self._begin(), *self._close("incomplete" if cut else "completed")]
        self.response["usage"] = usage_of(finished.usage)
        if cut:
            self.response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
            return [*events, self._snapshot("response.incomplete")]
        self.response |= {"status": "completed", "completed_at": int(time.time())}
        return [*events, self._snapshot("response.completed")]

    def _fail(self, failed: Failed) -> list[Event]:
        events = self._close("incomplete")
        self.response["usage"] = usage_of(failed.usage)
        if self.response["background"] and isinstance(failed.error, Cancelled):
            # The streams of the API know no event of its own for this.
            self.response["status"] = "cancelled"
            return [*events, self._snapshot("response.incomplete")]
        # OpenAI's clients know a closed list of codes; ours stands in the message.
        message = f"{failed.error} ({failed.error.code})"
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        return [*events, self._snapshot("response.failed")]

    # Events

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event

    def _snapshot(self, kind: str) -> Event:
        return self._event(kind, response={**self.response, "output": list(self.response["output"])})

    def _added(self, item: dict[str, Any]) -> Event:
        self._item = item
        self.response["output"].append(item)
        return self._item_event("response.output_item.added", item)

    def _item_event(self, kind: str, item: dict[str, Any]) -> Event:
        return self._event(kind, output_index=self._index, item=dict(item))

    def _open_item(self) -> dict[str, Any]:
        if self._item is None:
            raise RuntimeError("no item is open")
        return self._item

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._open_item()["id"], "output_index": self._index, "content_index": 0}

    def _content(self) -> dict[str, Any]:
        """Return the open item's only part as it is now."""
        text = "".join(self._deltas)
        if self._open_item()["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return output_text(text, self._logprobs)

    def _part(self, kind: str) -> Event:
        return self._event(kind, **self._place(), part=self._content())

    def _text_delta(self, kind: str, text: str, **fields: Any) -> Event:
        self._deltas.append(text)
        return self._event(kind, **self._place(), delta=text, **fields)

    def _text_done(self) -> Event:
        content = self._content()
        if content["type"] == "reasoning_text":
            return self._event("response.reasoning_text.done", **self._place(), text=content["text"])
        return self._event(
            "response.output_text.done", **self._place(), text=content["text"], logprobs=content["logprobs"]
        )


def encode(event: Event) -> bytes:
    """Return an event as a server-sent event, named by its type."""
    return sse(event, event["type"])
