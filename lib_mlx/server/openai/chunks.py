"""Answers of Chat Completions and Completions on the wire: a body, or chunks that end with `[DONE]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lib_mlx.generation import Failed
from lib_mlx.server.openai.common import error_body
from lib_mlx.server.sse import DONE, sse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lib_mlx.engine.event_stream import ChoiceEvent
    from lib_mlx.generation import GenerationEvent


class Fold(Protocol):
    """One or more answers under construction."""

    def opening(self) -> list[dict[str, Any]]:
        """Return the stream's first chunks."""

    def add(self, event: GenerationEvent, index: int = 0) -> list[dict[str, Any]]:
        """Take an event of the answer `index` in and return its chunks."""

    def body(self) -> dict[str, Any]:
        """Return the whole."""

    @property
    def finished(self) -> bool:
        """Whether all answers are whole."""


def encode(chunks: Iterable[dict[str, Any]]) -> bytes:
    """Return chunks as server-sent events."""
    return b"".join(sse(chunk) for chunk in chunks)


def render(fold: Fold, events: list[ChoiceEvent]) -> bytes:
    """Return the bytes of one engine step's events; the last step's end with `[DONE]`."""
    out: list[bytes] = []
    for index, event in events:
        if isinstance(event, Failed):
            return b"".join(out) + sse(error_body(event.error)) + DONE
        out.append(encode(fold.add(event, index)))
    return b"".join(out) + (DONE if fold.finished else b"")
