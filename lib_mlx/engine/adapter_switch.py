"""Which adapter a loaded model has, and giving it another one while it serves."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.engine.job import unloading
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import ModelNotFound, UnsupportedFeature
from lib_mlx.models.adapters import check_swappable, read_shape, swap_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.config import EngineConfig
    from lib_mlx.engine.scheduler import Scheduler


@dataclass(frozen=True, eq=False)
class _Change:
    """A change that waits for the requests under way."""

    name: str | None
    path: Path | None
    done: Future[None] = field(default_factory=Future)


class AdapterSwitch:
    """The adapters of one model. Any thread, but for `close`.

    Args:
        network: what has them.
        scheduler: of its requests.
        config: names them.
        changed: called on the engine thread when the model is no longer as it was loaded.
        fixed: what the model is, if that keeps it as it is.
    """

    def __init__(
        self,
        network: Any,
        scheduler: Scheduler,
        config: EngineConfig,
        changed: Callable[[], None],
        *,
        fixed: str | None = None,
    ) -> None:
        self._held = [network]  # emptied at the end, on the engine thread
        self._scheduler = scheduler
        self._known = dict(config.adapters)
        self._changed = changed
        named = config.adapter_path
        if named is not None and read_shape(self._folder(self._known.get(named, named))).method == "full":
            fixed = fixed or "A model whose weights were replaced"
        self._fixed = fixed
        self._waiting: list[_Change] = []  # engine thread only
        self.current = config.adapter_path
        """The name or directory of the adapter in use."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those that may be used."""
        return tuple(self._known)

    def change(self, name: str | None) -> Future[None]:
        """Begin what `EngineModel.set_adapter` waits for; what cannot be is raised at once.

        Cancelling the future takes the change back, unless it is being made.
        """
        if self._fixed is not None:
            raise UnsupportedFeature(
                f"{self._fixed} keeps the adapter that it was loaded with.",
                hint="Load it again with another adapter_path.",
                param="adapter",
            )
        if name is not None and name not in self._known:
            known = ", ".join(map(repr, self._known)) or "none"
            raise ModelNotFound(f"The model has no adapter {name!r}.", hint=f"It has {known}.", param="adapter")
        path = None if name is None else self._folder(self._known[name])
        if path is not None:
            check_swappable(path)  # what is in use stays if it is not
        change = _Change(name, path)
        get_worker().post(lambda: self._begin(change))
        return change.done

    def close(self) -> None:
        """Let go of the network. Engine thread."""
        self._held.clear()
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if change.done.set_running_or_notify_cancel():
                change.done.set_exception(unloading())

    def _begin(self, change: _Change) -> None:
        if self._held:
            self._waiting.append(change)
            self._scheduler.change(self._swap)
            change.done.add_done_callback(lambda done: self._given_up(change) if done.cancelled() else None)
        elif change.done.set_running_or_notify_cancel():
            change.done.set_exception(unloading())

    def _given_up(self, change: _Change) -> None:
        """Have requests wait no more for a change that nobody waits for. Any thread."""

        def forget() -> None:
            if change in self._waiting:
                self._waiting.remove(change)
                if not self._waiting:
                    self._scheduler.change(None)

        get_worker().post(forget)

    def _swap(self) -> None:
        """Make the changes that wait, in the order in which they came."""
        while self._waiting:
            change = self._waiting.pop(0)
            if not change.done.set_running_or_notify_cancel():
                continue
            try:
                self._changed()
                self.current = None
                swap_adapter(self._held[0], change.path)
                self.current = change.name
                change.done.set_result(None)
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                change.done.set_exception(error)

    @staticmethod
    def _folder(path: str) -> Path:
        return Path(path).expanduser()
