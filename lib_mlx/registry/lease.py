"""The use of a loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from lib_mlx.engine.engine import EngineModel


class Lease:
    """The use of a loaded model, which stays loaded until `release`. Any thread.

    Args:
        name: the model's, as clients know it.
        engine: the model.
        released: told how long it is to be kept then.
    """

    def __init__(self, name: str, engine: EngineModel, released: Callable[[float | None], None]) -> None:
        self.id = name
        self.engine = engine
        self._released: Callable[[float | None], None] | None = released

    def release(self, keep_alive_s: float | None = None) -> None:
        """Give the model free, to be unloaded after `keep_alive_s` (None: as configured). Idempotent."""
        released, self._released = self._released, None
        if released is not None:
            released(keep_alive_s)


def give_up(wanted: Future[Lease]) -> None:
    """Release the lease that `wanted` has or will have, for a wait that has ended without it."""
    wanted.add_done_callback(_release)


def _release(wanted: Future[Lease]) -> None:
    if not wanted.cancelled() and wanted.exception() is None:
        wanted.result().release()
