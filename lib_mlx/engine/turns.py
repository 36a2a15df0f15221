"""Whose turn it is: clients that ask for much keep no others waiting. Engine thread only."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lib_mlx.engine.job import Job

_AGEING = 2.0  # seconds of prompt processing that one second of waiting makes up for


class Turns:
    """Remembers when each client's last request was begun."""

    def __init__(self) -> None:
        self._begun = 0  # counts the requests
        self._last: dict[str, int] = {}  # by client: when its last one was, or when it came

    def __len__(self) -> int:
        return len(self._last)

    def come(self, client: str) -> None:
        """A request of `client` waits."""
        self._last.setdefault(client, self._begun)

    def take(self, client: str) -> None:
        """A request of `client` begins."""
        self._begun += 1
        self._last[client] = self._begun

    def forget(self, present: Sequence[Job]) -> None:
        """Forget clients that have none of the requests `present`, if there are many of them."""
        if len(self._last) > 2 * len(present) + 64:
            clients = {job.request.client for job in present}
            self._last = {client: turn for client, turn in self._last.items() if client in clients}

    def order(self, waiting: Iterable[Job], running: Iterable[Job], rate: float) -> list[Job]:
        """Return the waiting prompts in the order in which to begin them.

        First come clients of which fewer run, or whose last one was begun longer ago; one that has just come is
        treated as if that were now, lest newcomers keep others waiting for ever. Of a client's own the shortest goes
        first, but for how long they have waited, at a `rate` of prompt tokens per second.
        """
        run = Counter(job.request.client for job in running)

        def place(job: Job) -> tuple[int, int, float]:
            client = job.request.client
            return run[client], self._last[client], job.length - _AGEING * rate * job.age

        return sorted(waiting, key=place)
