"""Validated configuration of loads and servers: the JSON objects of the C ABI and the keywords of the Python API.

Keys are snake_case; camelCase aliases are accepted. An unknown key is an error that names it and the nearest
known one. Nothing heavy is imported here beyond pydantic.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from lib_mlx.errors import InvalidArgument, InvalidJson

if TYPE_CHECKING:
    from collections.abc import Mapping

CpuWeights = Literal["auto", "float32", "quantized"]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Config(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )


class EngineConfig(_Config):
    """How to run a model."""

    thinking_enabled: bool = True
    """Whether the chat template may open a reasoning block; a request can override it."""
    context_length: Annotated[int, Field(ge=1)] | None = None
    """Upper bound in tokens of prompt plus completion; the model's own if not given."""
    cpu_weights: CpuWeights = "auto"
    """Where MLX runs on the CPU: make weights float32, 8 times the size of 4-bit ones; or keep quantised weights so.
    "auto" keeps what our own C can multiply with, and dequantises the rest if that takes under half of the free memory:
    the fastest (docs/performance.md)."""
    kv_bits: Literal[4, 8] | None = None
    """Keep keys and values of the cache in so many bits: less memory, some loss, and requests decode in turns."""
    memory_limit_bytes: Annotated[int, Field(ge=1)] | None = None
    """The most that weights and caches may take together; what the machine has free if not given."""
    prefix_cache_bytes: Annotated[int, Field(ge=0)] | None = None
    """The most that is kept of past requests, whose beginnings need not be computed again; 0 keeps nothing. By
    default 2 GiB or a tenth of the machine's memory, whichever is less."""
    prefix_cache_path: Annotated[str, Field(min_length=1)] | None = None
    """A directory that keeps it across restarts; written when the model is unloaded."""


class LoadConfig(EngineConfig):
    """What to load and how (`lib_mlx_load_model`, `lib_mlx.load_model`)."""

    model_path: Annotated[str, Field(min_length=1)]
    """A model directory, a `.gguf` file, or the name of a model in the store or the Hugging Face cache."""
    model_id: Annotated[str, Field(min_length=1)] | None = None
    """The name clients use; the directory's name if not given."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face repository."""
    lazy_encoders: bool = True
    """Load image and audio encoders at their first use. Text models have none."""
    wait: bool = True
    """False: return at once; poll `server_status` for `progress`."""


class ServerConfig(_Config):
    """Where and how to serve one model (`lib_mlx_start_server`, `Model.start_server`)."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to bind. Only loopback unless named otherwise."""
    port: Port = 0
    """0 picks a free port; any other number is taken or is an error."""
    model_id: Annotated[str, Field(min_length=1)] | None = None
    """The name clients use; the model's own if not given."""
    queue_limit: Annotated[int, Field(ge=1)] = 64
    """Requests in flight at once, running and waiting; one more is answered 429 `queue_full`."""


C = TypeVar("C", bound=_Config)


def parse_config(kind: type[C], values: Mapping[str, Any] | bytes | str | None) -> C:
    """Validate `values` (a mapping, or the JSON text of one; None is an empty object) as `kind`.

    Raises:
        InvalidJson: the text is not a JSON object.
        InvalidArgument: a key is unknown or a value has a wrong type or range; `param` names it.
    """
    if values is None:
        values = {}
    if isinstance(values, (bytes, str)):
        values = _json_object(values)
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise _invalid_argument(kind, error, values) from None


def _json_object(text: bytes | str) -> dict[str, Any]:
    import orjson

    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(
            f"The configuration is not valid JSON: {error}.", hint="Pass a JSON object in UTF-8."
        ) from None
    if not isinstance(value, dict):
        raise InvalidJson("The configuration must be a JSON object.", hint='For example {"port": 0}.')
    return value


def _invalid_argument(
    kind: type[_Config], error: pydantic.ValidationError, values: Mapping[str, Any]
) -> InvalidArgument:
    first = error.errors(include_url=False, include_context=False)[0]
    key = _as_written(kind, ".".join(str(part) for part in first["loc"]), values)
    if first["type"] == "extra_forbidden":
        known = list(kind.model_fields)
        near = difflib.get_close_matches(key, [*known, *map(to_camel, known)], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
        return InvalidArgument(f"Unknown key {key!r}.", hint=hint, param=key)
    if first["type"] == "missing":
        return InvalidArgument(f"The key {key!r} is required.", param=key)
    return InvalidArgument(f"Invalid value for {key!r}: {first['msg']}.", param=key)


def _as_written(kind: type[_Config], key: str, values: Mapping[str, Any]) -> str:
    """Return `key` in snake_case unless the caller wrote it otherwise; pydantic reports the camelCase alias."""
    if key in values:
        return key
    return next((name for name in kind.model_fields if key in {name, to_camel(name)}), key)
