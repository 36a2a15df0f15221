"""What every stream of the Responses API promises, and how to read one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.server.specs import check, event_schemas

if TYPE_CHECKING:
    import httpx2

# The published schema of a reasoning item's text events names them `response.reasoning.*`; OpenAI's clients and
# document call them `response.reasoning_text.*`, which is what we send.
EVENT_SCHEMAS = event_schemas("openai") | {
    kind: name for kind, name in event_schemas("openresponses").items() if not kind.startswith("response.reasoning.")
}


def check_stream(events: list[dict[str, Any]]) -> None:
    """Demand what the state machine promises: numbering, nesting, and text that adds up."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert events[1]["type"] in {"response.in_progress", "response.queued"}
    for event in events:
        name = EVENT_SCHEMAS[event["type"]]
        check("openresponses" if name.endswith("StreamingEvent") else "openai", name, event)
    final = events[-1]["response"]
    check("openresponses", "ResponseResource", final)
    open_item: dict[str, Any] | None = None
    open_part: dict[str, Any] | None = None
    deltas = ""
    done: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert open_item is None, "an item opens while another is open"
            open_item, deltas = event["item"], ""
            assert event["output_index"] == len(done)
        elif kind == "response.output_item.done":
            assert open_item is not None
            assert open_part is None, "a part is never closed"
            assert event["item"]["id"] == open_item["id"]
            done.append(event["item"])
            open_item = None
        elif kind == "response.content_part.added":
            assert open_part is None, "a part opens while another is open"
            open_part = event["part"]
        elif kind == "response.content_part.done":
            assert open_part is not None
            assert event["part"]["type"] == open_part["type"]
            assert event["part"]["text"] == deltas
            open_part = None
        elif kind.endswith(".delta"):
            assert open_item is not None
            assert (open_part is None) == (open_item["type"] == "function_call")
            assert (event["item_id"], event["output_index"]) == (open_item["id"], len(done))
            deltas += event["delta"]
        elif kind.endswith((".text.done", "_text.done", "arguments.done")):
            assert event.get("text", event.get("arguments")) == deltas
    assert open_item is None, "an item is never closed"
    assert final["output"] == done


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """Drop what differs between two equal requests: ids, times, and what the second finds cached."""
    varying = {"id", "call_id", "created_at", "completed_at", "cached_tokens"}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in varying}
        return [clean(item) for item in value] if isinstance(value, list) else value

    cleaned: dict[str, Any] = clean(response)
    return cleaned


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    """Check the framing of a stream and return its events."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    *frames, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def stream_of(http: httpx2.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Stream a response over plain HTTP and return its events."""
    return events_of(http.post("/v1/responses", json={**body, "stream": True}))
