"""Which models a server can answer for, by the names clients use."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lib_mlx.errors import ModelNotFound

if TYPE_CHECKING:
    from lib_mlx.engine.engine import EngineModel


@dataclass(frozen=True)
class ModelEntry:
    """One servable model."""

    id: str
    engine: EngineModel
    created: int
    """When it was loaded, in seconds since the epoch."""
    aliases: frozenset[str] = field(default_factory=frozenset)
    """Further names it answers to."""


class Registry:
    """The models of one server. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, ModelEntry] = {}

    def add(self, entry: ModelEntry) -> None:
        """Make `entry` known."""
        with self._lock:
            self._entries[entry.id] = entry

    def entries(self) -> list[ModelEntry]:
        """Return all models, in the order they were added."""
        with self._lock:
            return list(self._entries.values())

    def find(self, name: str | None) -> ModelEntry:
        """Return the model that answers to `name`; without a name, the first one.

        Raises:
            ModelNotFound: there is none.
        """
        entries = self.entries()
        for entry in entries:
            if name is None or name == entry.id or name in entry.aliases:
                return entry
        known = ", ".join(repr(entry.id) for entry in entries)
        raise ModelNotFound(
            f"The model {name!r} does not exist here.",
            hint=f"This server has {known}." if known else "This server has no model.",
            param="model",
        )
