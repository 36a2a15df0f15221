"""The JSON answers of the C library. docs/schemas/ is made from these types; mypy holds `abi` to them."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict  # pydantic reads this one on every Python

from lib_mlx.errors import ErrorObject
from lib_mlx.status import ModelState, ModelStatus, ServerStatus


class Failure(TypedDict):
    """What every function answers if it fails."""

    ok: Literal[False]
    error: ErrorObject


class Done(TypedDict):
    """`lib_mlx_shutdown`."""

    ok: Literal[True]


class Loaded(TypedDict):
    """`lib_mlx_load_model`."""

    ok: Literal[True]
    handle: int
    status: ModelState
    model_id: str


class Served(TypedDict):
    """`lib_mlx_start_server`."""

    ok: Literal[True]
    handle: int
    server: ServerStatus


class Stopped(TypedDict):
    """`lib_mlx_stop_server`."""

    ok: Literal[True]
    handle: int
    status: Literal["stopped"]


class Reported(TypedDict):
    """`lib_mlx_server_status`; without `ok`, the event `handle` of `GET /v1/events`."""

    ok: Literal[True]
    handle: int
    model: ModelStatus
    server: ServerStatus


class Suspended(TypedDict):
    """`lib_mlx_suspend` and `lib_mlx_resume`."""

    ok: Literal[True]
    handle: int
    status: ModelState


class MemoryReport(TypedDict):
    """Resident memory in bytes: the host's and, with isolation, the child's."""

    before_bytes: int
    after_bytes: int


class Unloaded(TypedDict):
    """`lib_mlx_unload_model`."""

    ok: Literal[True]
    handle: int
    status: Literal["unloaded"]
    memory: MemoryReport


class Described(TypedDict):
    """`lib_mlx_version`, which C alone answers."""

    ok: Literal[True]
    version: str
    abi_version: int
    python_version: str | None
    mlx_version: str | None
