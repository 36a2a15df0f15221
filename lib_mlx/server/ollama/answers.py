"""Events folded into Ollama's answers, whole or line by line (NDJSON).

The fold is pure: the same events give the same content either way.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson

from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, Timings, ToolCallDelta, Usage
from lib_mlx.server.ollama.common import error_body, nanoseconds, timestamp

if TYPE_CHECKING:
    from lib_mlx.engine.event_stream import ChoiceEvent
    from lib_mlx.generation import GenerationEvent, SampledToken, TokenLogprob

MEDIA_TYPE = "application/x-ndjson"


class AnswerFold:
    """One answer under construction: `add` events; read its lines as they come, or the `body` at the end.

    Args:
        model: the name the client used.
        chat: whether it is a message of `/api/chat`, or the text of `/api/generate`.
        load_s: how long the request waited for its model.
    """

    def __init__(self, model: str, *, chat: bool, load_s: float = 0.0) -> None:
        self._model = model
        self._chat = chat
        self._load_s = load_s
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._end: dict[str, Any] = {}

    def add(self, event: GenerationEvent) -> dict[str, Any]:
        """Take an event in and return the stream's line for it.

        Raises:
            LibMlxError: the event is `Failed`.
        """
        match event:
            case TextDelta(text, tokens):
                self._text.append(text)
                noted = [_logprob(token) for token in tokens]
                self._logprobs += noted
                return self._line(text=text, logprobs=noted)
            case ReasoningDelta(text):
                self._thinking.append(text)
                return self._line(thinking=text)
            case ToolCallDelta():
                call = {"function": {"name": event.name, "arguments": _arguments(event.arguments)}, "id": event.id}
                self._calls.append(call)
                return self._line(calls=[call])
            case Finished(reason, usage, timings):
                self._end = _end("length" if reason == "length" else "stop", usage, timings, self._load_s)
                return self._line() | self._end
            case Failed(error):
                raise error

    def body(self) -> dict[str, Any]:
        """Return the whole answer; all events must have been added."""
        if not self._end:
            raise RuntimeError("the answer is not finished")
        whole = self._line("".join(self._text), "".join(self._thinking), self._calls, self._logprobs)
        return whole | self._end

    def empty(self, reason: str) -> dict[str, Any]:
        """Return the answer to a request without a prompt, which only loads or unloads the model."""
        return self._line() | {"done": True, "done_reason": reason}

    def _line(
        self,
        text: str = "",
        thinking: str = "",
        calls: list[dict[str, Any]] | None = None,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        said: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if calls:
            said["tool_calls"] = calls
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, **said}} if self._chat else {"response": text, **said}
        )
        head = {"model": self._model, "created_at": timestamp()}
        return {**head, **content, **({"logprobs": logprobs} if logprobs else {}), "done": False}


def _arguments(text: str) -> Any:
    """Return the object of a call; JSON can say what orjson cannot, such as numbers of any size."""
    value = json.loads(text)
    try:
        orjson.dumps(value)
    except TypeError:
        return orjson.Fragment(text)
    return value


def _end(reason: str, usage: Usage, timings: Timings, load_s: float) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": reason,
        "total_duration": nanoseconds(load_s + timings.ttft + timings.decode),
        "load_duration": nanoseconds(load_s),
        "prompt_eval_count": usage.prompt,
        "prompt_eval_duration": nanoseconds(timings.prefill),
        "eval_count": usage.completion,
        "eval_duration": nanoseconds(timings.decode),
    }


def _logprob(token: SampledToken) -> dict[str, Any]:
    return {**_entry(token.chosen), "top_logprobs": [_entry(other) for other in token.top]}


def _entry(token: TokenLogprob) -> dict[str, Any]:
    text = token.bytes.decode("utf-8", "replace")
    return {"token": text, "logprob": max(token.logprob, -9999.0), "bytes": list(token.bytes)}


def line(value: dict[str, Any]) -> bytes:
    """Return one line of the stream."""
    return orjson.dumps(value) + b"\n"


def render(fold: AnswerFold, events: list[ChoiceEvent]) -> bytes:
    """Return the lines of one engine step's events."""
    out: list[bytes] = []
    for _, event in events:
        out.append(line(error_body(event.error) if isinstance(event, Failed) else fold.add(event)))
    return b"".join(out)
