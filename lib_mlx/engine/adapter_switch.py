"""Which adapter a loaded model has, and giving it another one while it serves."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.engine.job import unloading
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import ModelNotFound, UnsupportedFeature
from lib_mlx.models.adapters import check_swappable, swap_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.config import EngineConfig
    from lib_mlx.engine.scheduler import Scheduler


class AdapterSwitch:
    """The adapters of one model. Any thread, but for `close`.

    Args:
        network: what has them.
        scheduler: of its requests.
        config: names them.
        changed: called on the engine thread when the model is no longer as it was loaded.
        fixed: whether the model is a GUI-Actor, whose own lane does not wait for a change.
    """

    def __init__(
        self,
        network: Any,
        scheduler: Scheduler,
        config: EngineConfig,
        changed: Callable[[], None],
        *,
        fixed: bool = False,
    ) -> None:
        self._held = [network]  # emptied at the end, on the engine thread
        self._scheduler = scheduler
        self._known = dict(config.adapters)
        self._changed = changed
        self._fixed = fixed
        self._lock = threading.Lock()
        self._waiting: Future[None] | None = None
        self.current = config.adapter_path
        """The name or directory of the adapter in use."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those that may be used."""
        return tuple(self._known)

    def use(self, name: str | None) -> None:
        """Have another adapter from the next request on, or none; see `EngineModel.set_adapter`."""
        if self._fixed:
            raise UnsupportedFeature(
                "A GUI-Actor keeps the adapter that it was loaded with.",
                hint="Load it again with another adapter_path.",
                param="adapter",
            )
        if name is not None and name not in self._known:
            known = ", ".join(map(repr, self._known)) or "none"
            raise ModelNotFound(f"The model has no adapter {name!r}.", hint=f"It has {known}.", param="adapter")
        path = None if name is None else Path(self._known[name]).expanduser()
        with self._lock:
            if path is not None:
                check_swappable(path)  # what is in use stays if it is not
            done: Future[None] = Future()
            get_worker().post(lambda: self._begin(name, path, done))
            done.result()

    def close(self) -> None:
        """Let go of the network. Engine thread."""
        self._held.clear()
        if self._waiting is not None:
            self._waiting.set_exception(unloading())
            self._waiting = None

    def _begin(self, name: str | None, path: Path | None, done: Future[None]) -> None:
        if not self._held:
            done.set_exception(unloading())
            return

        def swap() -> None:
            self._waiting = None
            try:
                self._changed()
                self.current = None
                swap_adapter(self._held[0], path)
                self.current = name
                done.set_result(None)
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                done.set_exception(error)

        self._waiting = done
        self._scheduler.change(swap)
