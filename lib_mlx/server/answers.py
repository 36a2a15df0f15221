"""The server's own answers; those of the dialects are their vendors'. docs/schemas/ is made from these types."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict  # pydantic reads this one on every Python

from lib_mlx.errors import ErrorObject
from lib_mlx.registry.slot import State

HealthStatus = Literal["ok", "stopping", "draining", "suspended", "stalled", "failed"]


class Live(TypedDict):
    """`GET /livez`."""

    status: Literal["ok"]


class Health(TypedDict):
    """`GET /health`."""

    status: HealthStatus
    models: list[str]
    """The names of those that are loaded."""
    in_flight: int
    """Requests running and waiting."""
    uptime_s: float


class ModelObject(TypedDict):
    """A model, in `GET /v1/models` and the event `model`: OpenAI's fields and ours."""

    id: str
    object: Literal["model"]
    created: int
    """When it was loaded (or made known), in seconds since the epoch."""
    owned_by: Literal["local"]
    status: State
    progress: float
    """From 0 to 1 while it loads."""
    stage: str
    """What the load is doing."""
    context_length: int | None
    adapter: str | None
    """The one in use."""
    adapters: list[str]
    """The names of those that may be used."""
    capabilities: list[str] | None
    """Of completion, vision, audio, video, tools, thinking; null if that is not known yet."""
    memory_bytes: int
    requests: int
    """That use it."""
    pinned: bool
    """Never unloaded to make room, or for idleness."""
    expires_in_s: float | None
    """Until it is unloaded if nobody asks for it; null: never."""
    error: ErrorObject | None


class ModelList(TypedDict):
    """`GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelObject]


class Memory(TypedDict):
    """The process's memory in bytes."""

    resident_bytes: int
    available_bytes: int
    limit_bytes: int | None


class Queue(TypedDict):
    """Requests."""

    in_flight: int
    waiting: int
    limit: int


class Cache(TypedDict):
    """The prefix cache."""

    hit_rate: float | None
    """The share of prompt tokens that were known already; null before the first request."""


class ServerReport(TypedDict):
    """`GET /v1/status`."""

    status: Literal["ok"]
    pid: int
    uptime_s: float
    models: list[ModelObject]
    memory: Memory
    queue: Queue
    cache: Cache


class Drain(TypedDict):
    """`POST /v1/drain`, `DELETE /v1/drain`."""

    object: Literal["drain"]
    draining: bool
    in_flight: int
    """Requests running and waiting, which are finished."""


class CancelledRequest(TypedDict):
    """`DELETE /v1/requests/{id}`."""

    id: str
    object: Literal["request"]
    cancelled: Literal[True]
