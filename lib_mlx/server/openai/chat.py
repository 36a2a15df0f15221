"""Chat Completions: events folded into a body or into chunks (developers.openai.com/api/reference/resources/chat).

The fold is pure: the same events give the same content either way.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from lib_mlx.server.fields import new_id
from lib_mlx.server.grounding import grounding_of
from lib_mlx.server.openai.common import chat_usage, logprob_entry

if TYPE_CHECKING:
    from lib_mlx.generation import GenerationEvent, Usage


class ChatFold:
    """One or more answers under construction. `add` events; read its chunks as they come, or the `body` at the end."""

    def __init__(self, model: str, *, choices: int = 1, include_usage: bool = False) -> None:
        self._head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        self._choices = [_Choice(index) for index in range(choices)]

    def opening(self) -> list[dict[str, Any]]:
        """Return the stream's first chunks, the only ones with a role."""
        return [self._chunk(choice.delta({"role": "assistant", "content": ""})) for choice in self._choices]

    def add(self, event: GenerationEvent, index: int = 0) -> list[dict[str, Any]]:
        """Take an event of the answer `index` in and return its chunks.

        Raises:
            LibMlxError: the event is `Failed`.
        """
        chunks = [self._chunk(self._choices[index].add(event))]
        if isinstance(event, Finished) and self._include_usage and self.finished:
            chunks.append(self._chunk(None, chat_usage(self._usage())))
        return chunks

    def body(self) -> dict[str, Any]:
        """Return the whole answer; all events must have been added."""
        choices = [choice.body() for choice in self._choices]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": chat_usage(self._usage())}

    @property
    def finished(self) -> bool:
        """Whether all answers are."""
        return all(choice.finished for choice in self._choices)

    def _usage(self) -> Usage:
        """Add the answers up; the prompt is one."""
        usages = [choice.finished.usage for choice in self._choices if choice.finished]
        completion, reasoning = (sum(getattr(usage, of) for usage in usages) for of in ("completion", "reasoning"))
        return replace(usages[0], completion=completion, reasoning=reasoning)

    def _chunk(self, choice: dict[str, Any] | None, usage: dict[str, Any] | None = None) -> dict[str, Any]:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice] if choice else []}
        return {**chunk, "usage": usage} if self._include_usage else chunk


class _Choice:
    """One answer of several."""

    def __init__(self, index: int) -> None:
        self.finished: Finished | None = None
        self._index = index
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []

    def add(self, event: GenerationEvent) -> dict[str, Any]:
        """Take an event in and return what the stream's chunk says of it."""
        match event:
            case TextDelta(text, tokens):
                self._text.append(text)
                logprobs = [logprob_entry(token) for token in tokens]
                self._logprobs += logprobs
                return self.delta({"content": text}, logprobs=logprobs)
            case ReasoningDelta(text):
                self._reasoning.append(text)
                return self.delta({"reasoning_content": text})
            case ToolCallDelta():
                return self.delta({"tool_calls": [self._call(event)]})
            case Finished():
                self.finished = event
                return self.delta({}, event.reason) | grounding_of(event.grounded)
            case Failed(error):
                raise error

    def body(self) -> dict[str, Any]:
        """Return the whole answer."""
        if self.finished is None:
            raise RuntimeError("the answer is not finished")
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text), "refusal": None}
        if self._calls:
            message["tool_calls"] = self._calls
            message["content"] = message["content"] or None
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        return {
            "index": self._index,
            "message": message,
            "logprobs": _logprobs(self._logprobs),
            "finish_reason": self.finished.reason,
            **grounding_of(self.finished.grounded),
        }

    def delta(
        self, delta: dict[str, Any], finish_reason: str | None = None, logprobs: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Return a piece of the answer."""
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": _logprobs(logprobs),
            "finish_reason": finish_reason,
        }

    def _call(self, delta: ToolCallDelta) -> dict[str, Any]:
        function = {"name": delta.name, "arguments": delta.arguments}
        call = {"id": delta.id, "type": "function", "function": function}
        self._calls.append(call)
        return {"index": delta.index, **call}


def _logprobs(content: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return {"content": content, "refusal": None} if content else None
