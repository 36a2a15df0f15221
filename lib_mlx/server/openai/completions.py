"""Completions: events folded into a body or into chunks (developers.openai.com/api/reference/resources/completions).

The fold is pure: the same events give the same content either way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lib_mlx.generation import Failed, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from lib_mlx.server.fields import new_id
from lib_mlx.server.openai.common import chat_usage

if TYPE_CHECKING:
    from lib_mlx.generation import GenerationEvent, SampledToken, TokenLogprob, Usage


@dataclass(frozen=True)
class Echo:
    """What stands before an answer: nothing, or the prompt."""

    prompt: int
    """The number of the prompt, of several."""
    text: str


class CompletionFold:
    """Answers under construction. `add` events; read its chunks as they come, or the `body` at the end."""

    def __init__(self, model: str, echoes: list[Echo], *, include_usage: bool = False) -> None:
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage
        self._choices = [_Choice(index, echo) for index, echo in enumerate(echoes)]

    def opening(self) -> list[dict[str, Any]]:
        """Return the chunks of what is echoed."""
        return [self._chunk(choice.piece(choice.echo.text)) for choice in self._choices if choice.echo.text]

    def add(self, event: GenerationEvent, index: int = 0) -> list[dict[str, Any]]:
        """Take an event of the answer `index` in and return its chunks.

        Raises:
            LibMlxError: the event is `Failed`.
        """
        chunks = [self._chunk(self._choices[index].add(event))]
        if isinstance(event, Finished) and self._include_usage and self.finished:
            chunks.append({**self._head, "choices": [], "usage": chat_usage(self._usage())})
        return chunks

    def body(self) -> dict[str, Any]:
        """Return the whole answer; all events must have been added."""
        choices = [choice.body() for choice in self._choices]
        return {**self._head, "choices": choices, "usage": chat_usage(self._usage())}

    @property
    def finished(self) -> bool:
        """Whether all answers are."""
        return all(choice.finished for choice in self._choices)

    def _usage(self) -> Usage:
        """Add the answers up, and each prompt once."""
        done = [(choice.echo.prompt, choice.finished.usage) for choice in self._choices if choice.finished]
        prompts = dict(reversed(done)).values()  # of several answers to a prompt, the first
        return replace(
            done[0][1],
            prompt=sum(usage.prompt for usage in prompts),
            cached=sum(usage.cached for usage in prompts),
            completion=sum(usage.completion for _, usage in done),
        )

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head, "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk


class _Choice:
    """One answer of several."""

    def __init__(self, index: int, echo: Echo) -> None:
        self.echo = echo
        self.finished: Finished | None = None
        self._index = index
        self._text: list[str] = [echo.text]
        self._length = len(echo.text)
        self._logprobs: dict[str, list[Any]] | None = None

    def add(self, event: GenerationEvent) -> dict[str, Any]:
        """Take an event in and return what the stream's chunk says of it."""
        match event:
            case TextDelta(text, tokens):
                self._text.append(text)
                return self.piece(text, logprobs=self._note(tokens))
            case Finished():
                self.finished = event
                return self.piece("", "length" if event.reason == "length" else "stop")
            case Failed(error):
                raise error
            case ReasoningDelta() | ToolCallDelta():
                raise TypeError("a completion is text only")

    def body(self) -> dict[str, Any]:
        """Return the whole answer."""
        if self.finished is None:
            raise RuntimeError("the answer is not finished")
        reason = "length" if self.finished.reason == "length" else "stop"
        return self.piece("".join(self._text), reason, self._logprobs)

    def piece(
        self, text: str, finish_reason: str | None = None, logprobs: dict[str, list[Any]] | None = None
    ) -> dict[str, Any]:
        """Return a piece of the answer."""
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _note(self, tokens: tuple[SampledToken, ...]) -> dict[str, list[Any]] | None:
        if not tokens:
            return None
        noted: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            text = _text(token.chosen)
            noted["tokens"].append(text)
            noted["token_logprobs"].append(_finite(token.chosen))
            noted["top_logprobs"].append({_text(other): _finite(other) for other in (*token.top, token.chosen)})
            noted["text_offset"].append(self._length)
            self._length += len(text)
        if self._logprobs is None:
            self._logprobs = {key: [] for key in noted}
        for key, values in noted.items():
            self._logprobs[key] += values
        return noted


def _text(token: TokenLogprob) -> str:
    return token.bytes.decode("utf-8", "replace")


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, -9999.0)  # as in chat
