"""Responses: events folded into a response object and into typed stream events (openresponses.org).

The fold is pure: the stream's terminal event carries the same object that a request without `stream` gets.
Each item is opened, streamed and closed before the next one opens.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from lib_mlx.server.fields import new_id
from lib_mlx.server.sse import DONE, sse

if TYPE_CHECKING:
    from lib_mlx.generation import GenerationEvent
    from lib_mlx.server.openai.responses_request import ResponsesRequest

Event = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


class ResponsesFold:
    """One response under construction: `opening` once, then `add` each event; `response` is its present state."""

    def __init__(self, body: ResponsesRequest, model: str, *, temperature: float, top_p: float) -> None:
        self.response: dict[str, Any] = _new_response(body, model, temperature, top_p)
        self._sequence = 0
        self._item: dict[str, Any] | None = None  # the open item, the last of the output
        self._deltas: list[str] = []  # its text so far

    def opening(self) -> list[Event]:
        """Return the events that precede all output."""
        return [self._snapshot("response.created"), self._snapshot("response.in_progress")]

    def add(self, event: GenerationEvent) -> list[Event]:
        """Take one event in and return the stream events it makes."""
        match event:
            case ReasoningDelta(text):
                return [*self._switch("reasoning"), self._text_delta("response.reasoning_text.delta", text)]
            case TextDelta(text):
                delta = self._switch("message")
                return [*delta, self._text_delta("response.output_text.delta", text, logprobs=[])]
            case ToolCallDelta():
                return self._call(event)
            case Finished():
                return self._finish(event)
            case Failed():
                return self._fail(event)

    # Items

    def _switch(self, kind: str) -> list[Event]:
        """Make sure that the open item is a `kind`."""
        if self._item is not None and self._item["type"] == kind:
            return []
        return self._close() + self._open(kind)

    def _open(self, kind: str) -> list[Event]:
        self._deltas = []
        if kind == "reasoning":
            return [
                self._added({"id": new_id("rs"), "type": kind, "status": "in_progress", "summary": [], "content": []})
            ]
        item = {"id": new_id("msg"), "type": kind, "role": "assistant", "status": "in_progress", "content": []}
        return [self._added(item), self._part("response.content_part.added", _output_text(""))]

    def _close(self, status: Status = "completed") -> list[Event]:
        """Close the open item, if there is one."""
        if self._item is None:
            return []
        item, text = self._item, "".join(self._deltas)
        events: list[Event] = []
        if item["type"] == "reasoning":
            events.append(self._event("response.reasoning_text.done", **self._place(), text=text))
            item["content"] = [{"type": "reasoning_text", "text": text}]
        elif item["type"] == "message":
            events.append(self._event("response.output_text.done", **self._place(), text=text, logprobs=[]))
            events.append(self._part("response.content_part.done", _output_text(text)))
            item["content"] = [_output_text(text)]
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
        events = [*self._close(), self._added(item)]
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
        events = self._close("incomplete" if cut else "completed")
        self.response["usage"] = _usage(finished.usage)
        if cut:
            self.response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
            return [*events, self._snapshot("response.incomplete")]
        self.response |= {"status": "completed", "completed_at": int(time.time())}
        return [*events, self._snapshot("response.completed")]

    def _fail(self, failed: Failed) -> list[Event]:
        events = self._close("incomplete")
        # OpenAI's clients know a closed list of codes; ours stands in the message.
        message = f"{failed.error} ({failed.error.code})"
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        self.response["usage"] = _usage(failed.usage)
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

    def _place(self) -> dict[str, Any]:
        if self._item is None:
            raise RuntimeError("no item is open")
        return {"item_id": self._item["id"], "output_index": self._index, "content_index": 0}

    def _part(self, kind: str, part: dict[str, Any]) -> Event:
        return self._event(kind, **self._place(), part=part)

    def _text_delta(self, kind: str, text: str, **fields: Any) -> Event:
        self._deltas.append(text)
        return self._event(kind, **self._place(), delta=text, **fields)


def render(fold: ResponsesFold, events: list[GenerationEvent]) -> bytes:
    """Return the bytes of one engine step's events; the last step's end with `[DONE]`."""
    out = encode([made for event in events for made in fold.add(event)])
    return out + DONE if isinstance(events[-1], (Finished, Failed)) else out


def encode(events: list[Event]) -> bytes:
    """Return events as server-sent events, each named by its type."""
    return b"".join(sse(event, event["type"]) for event in events)


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def _new_response(body: ResponsesRequest, model: str, temperature: float, top_p: float) -> dict[str, Any]:
    """Return a response object in progress, with every field the schema requires."""
    reasoning = body.reasoning
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "incomplete_details": None,
        "model": model,
        "previous_response_id": None,
        "instructions": body.instructions,
        "output": [],
        "error": None,
        "tools": [_tool(tool) for tool in body.tools or ()],
        "tool_choice": body.tool_choice or "auto",
        "truncation": "disabled",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": _text_options(body),
        "top_p": top_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "top_logprobs": 0,
        "temperature": temperature,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "usage": None,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": body.metadata or {},
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        "user": body.user,
    }


def _tool(tool: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }


def _text_options(body: ResponsesRequest) -> dict[str, Any]:
    form = (body.text.format if body.text else None) or {"type": "text"}
    if form["type"] == "json_schema":
        form = {"description": None, "strict": True, **form}
    verbosity = body.text.verbosity if body.text else None
    return {"format": form, "verbosity": verbosity} if verbosity else {"format": form}
