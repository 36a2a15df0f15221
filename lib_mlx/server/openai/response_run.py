"""One response being made: events go in, the bytes of its stream come out, and at its end it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_mlx.server.openai.event_log import EventLog
from lib_mlx.server.openai.response_store import StoredResponse
from lib_mlx.server.openai.responses import encode
from lib_mlx.server.sse import DONE

if TYPE_CHECKING:
    from lib_mlx.generation import GenerationEvent
    from lib_mlx.server.openai.response_items import Item
    from lib_mlx.server.openai.response_store import ResponseStore
    from lib_mlx.server.openai.responses import Event, ResponsesFold


class ResponseRun:
    """Folds the events of one response, and keeps it if its `store` says so.

    Args:
        fold: the response.
        store: where to keep it.
        items: the input it answers.
        previous: the response it continues.
        streamed: whether its events are wanted as bytes.
    """

    def __init__(
        self,
        fold: ResponsesFold,
        store: ResponseStore,
        items: tuple[Item, ...],
        previous: StoredResponse | None,
        *,
        streamed: bool,
    ) -> None:
        self.fold = fold
        self._store = store
        self._streamed = streamed
        self.stored: StoredResponse | None = None
        """What is kept of it, or will be."""
        if fold.response["store"]:
            log = EventLog() if streamed else None
            self.stored = StoredResponse(fold.response, items, previous, log)

    def opening(self) -> bytes:
        """Return the bytes that precede all output."""
        return self._out(self.fold.opening())

    def take(self, events: list[GenerationEvent]) -> bytes:
        """Take the events of one engine step in and return their bytes; the last ones end with `[DONE]`."""
        out = self._out([made for event in events for made in self.fold.add(event)])
        if not self.fold.finished:
            return out
        if self.stored is not None:
            if self.fold.response["background"]:
                self._store.settle(self.stored)
            else:
                self._store.add(self.stored)
        return out + DONE

    def _out(self, events: list[Event]) -> bytes:
        if not self._streamed:
            return b""
        chunks = [encode(event) for event in events]
        if self.stored is not None and self.stored.log is not None:
            self.stored.log.extend(chunks, closed=self.fold.finished)
        return b"".join(chunks)
