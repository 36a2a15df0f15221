"""What can be served, and what has become of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lib_mlx.config import EngineConfig

if TYPE_CHECKING:
    from concurrent.futures import Future

    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.errors import ErrorObject, LibMlxError
    from lib_mlx.registry.lease import Lease

State = Literal["available", "loading", "ready", "suspended", "unloading", "failed"]
FOREVER = float("inf")


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be served."""

    id: str
    path: str
    """A directory, a `.gguf` file, or a name of the store or the Hugging Face cache."""
    config: EngineConfig = EngineConfig()  # noqa: RUF009 - immutable
    revision: str | None = None
    aliases: frozenset[str] = frozenset()
    """Further names it answers to."""
    pinned: bool = False
    """Never unloaded to make room, or for idleness."""
    keep_alive_s: float | None = None
    """Unload it after so long without a request; None: as the registry does."""


@dataclass(frozen=True)
class ModelEntry:
    """What a model's state was when it was asked for."""

    spec: ModelSpec
    status: State
    progress: float
    stage: str
    engine: EngineModel | None
    created: int
    """When it was loaded (or made known), in seconds since the epoch."""
    busy: int
    """Requests that use it."""
    bytes: int
    """Of memory, as loaded; an estimate while it loads."""
    expires_in_s: float | None
    """Until it is unloaded if nobody asks for it; None: never."""
    error: ErrorObject | None

    @property
    def id(self) -> str:
        """The name clients use."""
        return self.spec.id

    @property
    def loaded(self) -> bool:
        """Whether it is in memory, to be used."""
        return self.status in {"ready", "suspended"}


@dataclass(eq=False)
class Slot:
    """One model of a registry, which guards it with its lock."""

    spec: ModelSpec
    owned: bool = True
    """Whether this registry loads and unloads it."""
    status: State = "available"
    """Never "suspended", which is the engine's to say."""
    progress: float = 0.0
    stage: str = ""
    engine: EngineModel | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    used: float = 0.0
    """When the last request ended, by the monotonic clock."""
    keep_alive_s: float = FOREVER
    busy: int = 0
    bytes: int = 0
    error: LibMlxError | None = None
    waiting: list[Future[Lease]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    postponed: bool = False
    """Its load was cancelled only for the time being."""

    @property
    def evictable(self) -> bool:
        """Whether it may be unloaded now."""
        return self.owned and self.status == "ready" and not self.busy and not self.spec.pinned

    @property
    def expires_at(self) -> float:
        """By the monotonic clock."""
        return self.used + self.keep_alive_s if self.evictable else FOREVER

    def entry(self) -> ModelEntry:
        """Return what is to be seen of it now."""
        left = self.expires_at - time.monotonic()
        return ModelEntry(
            spec=self.spec,
            status="suspended" if self.status == "ready" and self.engine and self.engine.suspended else self.status,
            progress=self.progress,
            stage=self.stage,
            engine=self.engine,
            created=self.created,
            busy=self.busy,
            bytes=self.bytes,
            expires_in_s=None if left == FOREVER else max(0.0, left),
            error=self.error.to_json() if self.error else None,
        )
