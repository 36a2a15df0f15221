"""Responses that are kept: to be continued, retrieved and referred to.

In memory, as many and as much as the bounds allow, the least recently used given up first, gone with the server.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from lib_mlx.errors import InvalidArgument, NotFound, PreviousResponseNotFound
from lib_mlx.server.openai.reasoning_seal import ReasoningSeal

if TYPE_CHECKING:
    from lib_mlx.server.openai.background import BackgroundRun
    from lib_mlx.server.openai.event_log import EventLog
    from lib_mlx.server.openai.response_items import Item

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20
_RUNNING = {"queued", "in_progress"}


@dataclass(eq=False)
class StoredResponse:
    """A response, and the conversation it belongs to."""

    response: dict[str, Any]
    """The response object; its present state if it is still being made."""
    input: tuple[Item, ...]
    """What was sent with the request."""
    previous: StoredResponse | None = None
    """The response it continues."""
    log: EventLog | None = None
    """The events of its stream, if it was streamed."""
    run: BackgroundRun | None = None
    """Makes it, or made it, if that went on in the background."""
    size: int = 0
    """Bytes, as the store counts them."""
    holders: int = 0
    """The store's list, if it is on it, and the responses that continue it: it lives as long as there are any."""

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.response["id"])

    @property
    def running(self) -> bool:
        """Whether it is still being made."""
        return self.response["status"] in _RUNNING

    @property
    def items(self) -> list[Item]:
        """Its own input and output."""
        return [*self.input, *self.response["output"]]

    def history(self) -> list[Item]:
        """Return the items of all responses before it, oldest first."""
        chain = []
        at = self.previous
        while at is not None:
            chain.append(at)
            at = at.previous
        return [item for stored in reversed(chain) for item in stored.items]


class ResponseStore:
    """The kept responses of one server. Belongs to its event loop.

    A response that was given up or deleted can be found no more, but what continues it still knows the conversation:
    its bytes count until the last such response is gone. Responses in the making are never given up.
    """

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._listed: OrderedDict[str, StoredResponse] = OrderedDict()  # least recently used first
        self._places: dict[str, StoredResponse] = {}  # by the ids of items
        self.bytes = 0
        """What all kept responses take, as JSON."""
        self.seal = ReasoningSeal()

    def __len__(self) -> int:
        """Return how many responses can be found."""
        return len(self._listed)

    def add(self, stored: StoredResponse) -> None:
        """Keep a response, and give others up for it if need be."""
        self._listed[stored.id] = stored
        stored.size = _size(stored)
        self._hold(stored)
        self._place(stored)
        self._give_up()

    def settle(self, stored: StoredResponse) -> None:
        """Count anew what a response takes that has been finished since it was added."""
        grown = _size(stored) - stored.size
        stored.size += grown
        if stored.holders:
            self.bytes += grown
        if stored.id in self._listed:
            self._place(stored)
        self._give_up()

    def get(self, response_id: str) -> StoredResponse:
        """Return the response of an id.

        Raises:
            NotFound: there is none.
        """
        stored = self._listed.get(response_id)
        if stored is None:
            raise NotFound(
                f"There is no response {response_id!r}.",
                hint="Responses are kept in memory: unless 'store' is false, and until there are too many.",
            )
        self._listed.move_to_end(response_id)
        return stored

    def previous(self, response_id: str | None) -> StoredResponse | None:
        """Return the response that a request continues, if it names one.

        Raises:
            PreviousResponseNotFound: there is none.
            InvalidArgument: it is still being made.
        """
        if response_id is None:
            return None
        try:
            stored = self.get(response_id)
        except NotFound as error:
            raise PreviousResponseNotFound(
                error.message, hint="Send the whole conversation.", param="previous_response_id"
            ) from None
        if stored.running:
            raise InvalidArgument(
                f"The response {response_id!r} is not finished.",
                hint="Wait for it, or cancel it.",
                param="previous_response_id",
            )
        return stored

    def item(self, item_id: str) -> Item | None:
        """Return the item of an id, None if no kept response has it."""
        stored = self._places.get(item_id)
        return next((item for item in stored.items if item["id"] == item_id), None) if stored else None

    def remove(self, stored: StoredResponse) -> None:
        """Have a response found no more. Idempotent."""
        if self._listed.pop(stored.id, None) is None:
            return
        for item in stored.items:
            if self._places.get(item["id"]) is stored:
                del self._places[item["id"]]
        at: StoredResponse | None = stored
        while at is not None:
            at.holders -= 1
            if at.holders:
                return
            self.bytes -= at.size
            at = at.previous

    def _hold(self, stored: StoredResponse) -> None:
        """Count a holder of `stored` in; what nobody held before is counted too, and holds what it continues."""
        at: StoredResponse | None = stored
        while at is not None:
            at.holders += 1
            if at.holders > 1:
                return
            self.bytes += at.size
            at = at.previous

    def _place(self, stored: StoredResponse) -> None:
        self._places.update((item["id"], stored) for item in stored.items)

    def _give_up(self) -> None:
        """Remove the least recently used responses until the bounds hold."""
        if self._within_bounds():
            return
        for stored in [stored for stored in self._listed.values() if not stored.running]:
            self.remove(stored)
            if self._within_bounds():
                return

    def _within_bounds(self) -> bool:
        return len(self._listed) <= self._max_responses and self.bytes <= self._max_bytes


def _size(stored: StoredResponse) -> int:
    own = len(orjson.dumps(stored.input)) + len(orjson.dumps(stored.response))
    return own + (stored.log.bytes if stored.log else 0)
