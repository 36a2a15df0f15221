"""The models that a registry knows, and who hears of their changes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from lib_mlx.errors import ModelNotFound
from lib_mlx.registry.slot import ModelEntry, ModelSpec, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Slots:
    """See the module. Thread-safe; who reads or changes a slot holds `changed`.

    Args:
        discover: called for further models, each time they are listed or an unknown one is asked for.
        any_name: whether the first model answers to every name.
    """

    def __init__(self, discover: Callable[[], Iterable[ModelSpec]], *, any_name: bool) -> None:
        self.changed = threading.Condition()
        self._discover = discover
        self._any_name = any_name
        self._slots: dict[str, Slot] = {}
        self._listeners: list[Callable[[ModelEntry], None]] = []

    def __iter__(self) -> Iterator[Slot]:
        """All, in the order they were made known. The caller holds `changed`."""
        return iter(self._slots.values())

    def add(self, slot: Slot, *, first: bool = False) -> None:
        """Make a model known in the place of one of the same name; the first is for requests that name none."""
        with self.changed:
            name = slot.spec.id
            if first:
                self._slots = {name: slot, **{other: one for other, one in self._slots.items() if other != name}}
            else:
                self._slots[name] = slot

    def add_new(self, specs: Iterable[ModelSpec]) -> None:
        """Make models known that are not, to be loaded at their first use."""
        with self.changed:
            for spec in specs:
                self._slots.setdefault(spec.id, Slot(spec))

    def discover(self) -> None:
        """Make models known that have appeared. May look at the disk."""
        self.add_new(list(self._discover()))

    def match(self, name: str | None) -> Slot | None:
        """Return what answers to `name`; without a name, the first. The caller holds `changed`."""
        if name is None or self._any_name:
            return next(iter(self), None)
        return self._slots.get(name) or next((slot for slot in self if name in slot.spec.aliases), None)

    def find(self, name: str | None) -> Slot:
        """Return what `match` does; raises ModelNotFound for nothing. The caller holds `changed`."""
        found = self.match(name)
        if found is not None:
            return found
        known = ", ".join(repr(model) for model in self._slots)
        raise ModelNotFound(
            f"The model {name!r} does not exist here.",
            hint=f"This server has {known}." if known else "This server has no model.",
            param="model",
        )

    def subscribe(self, listener: Callable[[ModelEntry], None]) -> Callable[[], None]:
        """Have `listener` called by `publish`; returns what ends that."""
        with self.changed:
            self._listeners = [*self._listeners, listener]

        def end() -> None:
            with self.changed:
                self._listeners = [other for other in self._listeners if other is not listener]

        return end

    def publish(self, slot: Slot) -> None:
        """Tell all who listen how a model is."""
        with self.changed:  # also while they are told: the last they hear is how it is
            entry = slot.entry()
            for listener in self._listeners:
                listener(entry)
