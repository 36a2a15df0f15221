"""How many requests a server lets in at once."""

from __future__ import annotations

from lib_mlx.errors import QueueFull

_RETRY_AFTER_S = 1


class Admission:
    """Counts the requests in flight, running and waiting. Belongs to the server's event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0

    def enter(self) -> None:
        """Count one request in; pair with `leave`.

        Raises:
            QueueFull: `limit` requests are in flight already.
        """
        if self.in_flight >= self.limit:
            raise QueueFull(
                f"{self.in_flight} requests are in flight, as many as this server allows.",
                hint="Try again shortly, or start the server with a larger queue_limit.",
                retry_after=_RETRY_AFTER_S,
            )
        self.in_flight += 1

    def leave(self) -> None:
        """Count one request out."""
        self.in_flight -= 1
