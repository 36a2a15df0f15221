"""What a host sees of a model and its server: immutable snapshots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lib_mlx.errors import ErrorObject  # noqa: TC001 - pydantic takes the types apart when the schemas are made

if TYPE_CHECKING:
    from collections.abc import Callable

ModelState = Literal["loading", "ready", "suspended", "stalled", "unloading", "failed"]
Device = Literal["cpu", "gpu"]
WeightKind = Literal["float32", "float16", "bfloat16", "quantized"]
EncoderState = Literal["waiting", "loaded"]
ServerState = Literal["stopped", "starting", "running", "stopping"]


@dataclass(frozen=True)
class ModelStatus:
    """A model's state."""

    status: ModelState
    """`stalled` while the engine has been busy with one step for a minute or more."""
    model_id: str
    """The name clients use."""
    model_path: str
    """As it was asked for."""
    progress: float = 0.0
    """From 0 to 1 while it loads."""
    stage: str = ""
    """What the load is doing."""
    error: ErrorObject | None = None
    """Why it has failed."""
    context_length: int | None = None
    """In tokens; this and the rest are None until it is loaded."""
    device: Device | None = None
    """Where it runs."""
    weights: WeightKind | None = None
    """How they are kept in memory."""
    blas: str | None = None
    """The library in place of MLX's own on the CPU."""
    encoders: EncoderState | None = None
    """Whether its encoders of images are in memory, or wait for their first use; None if it has none."""


@dataclass(frozen=True)
class ServerStatus:
    """A server's state; the address is set while it runs."""

    status: ServerState
    host: str | None = None
    port: int | None = None
    base_url: str | None = None
    """Point an OpenAI client here."""
    model_id: str | None = None
    """The name clients use for its first model."""
    uds: str | None = None
    """The Unix socket it listens on, if it does; `host` and `port` mean nothing then."""
    api_key: str | None = None
    """Set in the answer to the start alone."""


@dataclass(frozen=True)
class Status:
    """One handle's model and server."""

    handle: int
    model: ModelStatus
    server: ServerStatus

    def to_json(self) -> dict[str, Any]:
        """Return the object of the C ABI."""
        return asdict(self)


@dataclass(frozen=True)
class UnloadReport:
    """The process's resident memory in bytes, before and after an unload."""

    before_bytes: int
    after_bytes: int


class Handles(Protocol):
    """The handles of the process."""

    def statuses(self) -> list[Status]:
        """Return their states."""

    def subscribe(self, listener: Callable[[int, Status | None], None]) -> Callable[[], None]:
        """Have `listener` called at every change, on any thread; return what ends that."""
