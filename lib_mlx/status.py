"""What a host sees of a model and its server: immutable snapshots, and their JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lib_mlx.errors import ErrorObject

ModelState = Literal["loading", "ready", "suspended", "stalled", "unloading", "failed"]
Device = Literal["cpu", "gpu"]
WeightKind = Literal["float32", "float16", "bfloat16", "quantized"]
ServerState = Literal["stopped", "starting", "running", "stopping"]


@dataclass(frozen=True)
class ModelStatus:
    """A model's state; `stalled` while the engine has been busy with one step for a minute or more.

    `progress` goes from 0 to 1 while `stage` names what a load is doing. `device` is where a loaded model runs,
    `weights` how they are kept there, and `blas` the library that was put in place of MLX's own on the CPU.
    """

    status: ModelState
    model_id: str
    model_path: str
    progress: float = 0.0
    stage: str = ""
    error: ErrorObject | None = None
    context_length: int | None = None
    device: Device | None = None
    weights: WeightKind | None = None
    blas: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object of the C ABI."""
        return asdict(self)


@dataclass(frozen=True)
class ServerStatus:
    """A server's state; the address is set while it runs."""

    status: ServerState
    host: str | None = None
    port: int | None = None
    base_url: str | None = None
    model_id: str | None = None
    uds: str | None = None
    """The Unix socket it listens on, if it does; `host` and `port` mean nothing then."""
    api_key: str | None = None
    """Set in the answer to the start alone."""

    def to_json(self) -> dict[str, Any]:
        """Return the object of the C ABI."""
        return asdict(self)


@dataclass(frozen=True)
class Status:
    """One handle's model and server."""

    handle: int
    model: ModelStatus
    server: ServerStatus

    def to_json(self) -> dict[str, Any]:
        """Return the object of the C ABI."""
        return {"handle": self.handle, "model": self.model.to_json(), "server": self.server.to_json()}


@dataclass(frozen=True)
class UnloadReport:
    """The process's resident memory in bytes, before and after an unload."""

    before_bytes: int
    after_bytes: int
