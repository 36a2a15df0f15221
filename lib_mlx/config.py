"""Validated configuration of loads and servers: the JSON objects of the C ABI and the keywords of the Python API.

Keys are snake_case; camelCase aliases are accepted. An unknown key is an error that names it and the nearest
known one. Nothing heavy is imported here beyond pydantic.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

from lib_mlx.errors import InvalidArgument, InvalidJson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CpuWeights = Literal["auto", "float32", "quantized"]
LogLevel = Literal["debug", "info", "warning", "error"]
Port = Annotated[int, Field(ge=0, le=65535)]


def parse_duration(value: Any) -> Any:
    """Return seconds: of a number, or of a text like "90", "1.5h", "10m30s", "500ms"; negative or a century: for ever.

    The text is Go's duration, as Ollama's `keep_alive` takes it (https://pkg.go.dev/time#ParseDuration).
    """
    if isinstance(value, str):
        text = value.strip()
        parts = _DURATION.findall(text.lstrip("+-"))
        if "".join(map("".join, parts)) == text.lstrip("+-") and parts:
            seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
            value = -seconds if text.startswith("-") else seconds
        else:
            raise ValueError(f"{value!r} is not a duration like '5m'")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isnan(value):
            raise ValueError("not a number of seconds")
        return math.inf if value < 0 or value >= _CENTURY_S else float(value)
    return value


_CENTURY_S = 100 * 365 * 86400.0  # clocks, locks and calendars count up to some centuries
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_TEXT = r"^[+-]?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h)?)+$"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)?")
KeepAlive = Annotated[
    float,
    Field(ge=0),
    BeforeValidator(parse_duration),
    PlainSerializer(lambda seconds: -1 if seconds == math.inf else seconds, when_used="json"),  # JSON has no infinity
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[+-]?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h)?)+$"}]}
    ),
]
"""Seconds; infinity is for ever."""


class Config(BaseModel):
    """What all configurations have in common."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class GenerationDefaults(Config):
    """What a request gets that leaves it out; before the checkpoint's own generation_config.json."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The most tokens of an answer, reasoning included; up to the context's end if not given."""
    temperature: Annotated[float, Field(ge=0, le=1000)] | None = None
    """0 is greedy."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw from the likeliest tokens that have this much of the probability together."""
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    """Draw from so many of the likeliest; 0 is off."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw from those at least this likely, relative to the likeliest."""
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1000)] | None = None
    """Over prompt and output; 1 is off."""


class EngineConfig(Config):
    """How to run a model."""

    thinking_enabled: bool = True
    """Whether the chat template may open a reasoning block; a request can override it."""
    context_length: Annotated[int, Field(ge=1)] | None = None
    """Upper bound in tokens of prompt plus completion; the model's own if not given."""
    cpu_weights: CpuWeights = "auto"
    """Where MLX runs on the CPU: make weights float32, 8 times the size of 4-bit ones; or keep quantised weights so.
    "auto" keeps what our own C can multiply with, and dequantises the rest if that takes under half of the free memory:
    the fastest (docs/performance.md)."""
    trust_remote_code: bool = False
    """Run the code that a checkpoint brings (`model_file`, `auto_map`); without it such a checkpoint is refused."""
    kv_bits: Literal[4, 8] | None = None
    """Keep keys and values of the cache in so many bits: less memory, some loss, and requests decode in turns."""
    memory_limit_bytes: Annotated[int, Field(ge=1)] | None = None
    """The most that weights and caches may take together; what the machine has free if not given."""
    prefix_cache_bytes: Annotated[int, Field(ge=0)] | None = None
    """The most that is kept of past requests, whose beginnings need not be computed again; 0 keeps nothing. By
    default 2 GiB or a tenth of the machine's memory, whichever is less."""
    lazy_encoders: bool = True
    """Load image and audio encoders at their first use. Text models have none."""
    min_pixels: Annotated[int, Field(ge=1)] | None = None
    """Images are made larger than this before the model sees them; the checkpoint's own bound if not given."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """Images are made smaller than this: fewer tokens, less detail; the checkpoint's own bound if not given."""
    image_cache_bytes: Annotated[int, Field(ge=0)] | None = None
    """The most that is kept of encoded images, so that one that comes again is not encoded again; 0 keeps none. By
    default 256 MiB or a fiftieth of the machine's memory, whichever is less."""
    prefix_cache_path: Annotated[str, Field(min_length=1)] | None = None
    """A directory that keeps it across restarts; written when the model is unloaded."""
    prompt_lookup: bool = False
    """Guess that what followed the last tokens when they stood there before follows again, and check several tokens at
    once: the answers are the same, faster where they repeat the prompt. Requests decode in turns."""
    draft_model_path: Annotated[str, Field(min_length=1)] | None = None
    """A smaller model with the same tokens, whose guesses are checked likewise."""
    draft_tokens: Annotated[int, Field(ge=1, le=64)] = 4
    """The most tokens that are guessed at once."""
    adapter_path: Annotated[str, Field(min_length=1)] | None = None
    """The directory of an adapter to begin with, or a name of `adapters`."""
    adapters: dict[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]] = {}
    """Directories of adapters by name, which can take each other's place while the model serves."""
    generation: GenerationDefaults | None = None
    """What requests get that leave it out."""

    @pydantic.field_validator("max_pixels")
    @classmethod
    def _leave_room(cls, value: int | None, info: pydantic.ValidationInfo) -> int | None:
        least = info.data.get("min_pixels")
        if value is not None and least is not None and value < least:
            raise ValueError(f"it is less than min_pixels, {least}")
        return value


class LoadConfig(EngineConfig):
    """What to load and how (`lib_mlx_load_model`, `lib_mlx.load_model`)."""

    model_path: Annotated[str, Field(min_length=1)]
    """A model directory, a `.gguf` file, or the name of a model in the store or the Hugging Face cache."""
    model_id: Annotated[str, Field(min_length=1)] | None = None
    """The name clients use; the directory's name if not given."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face repository."""
    wait: bool = True
    """False: return at once; poll `server_status` for `progress`."""
    isolation: Literal["none", "process"] = "none"
    """"process": engine and server run in a child process, whose death this one survives. It needs the server: the
    Python API cannot generate without it."""
    log_file: Annotated[str, Field(min_length=1)] | None = None
    """Append what the library does to this file, until the unload. What is asked and answered is not in it."""
    log_level: LogLevel = "info"
    """What `log_file` is told; "debug" has a line per request."""


class ServedModel(EngineConfig):
    """A further model of a server, loaded when it is first asked for."""

    model_path: Annotated[str, Field(min_length=1)]
    """As in `LoadConfig`."""
    model_id: Annotated[str, Field(min_length=1)] | None = None
    """The name clients use; the last part of `model_path` if not given."""
    revision: str | None = None
    """As in `LoadConfig`."""
    pinned: bool = False
    """Never unload it to make room or for idleness."""
    keep_alive: KeepAlive | None = None
    """Unload it after so long without a request; the server's `keep_alive` if not given."""


class Profile(Config):
    """Bounds of a request that names it in `profile`."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The most tokens of an answer, reasoning included."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """Images are made smaller than this."""


class ServerConfig(Config):
    """Where and how to serve one model, and others (`lib_mlx_start_server`, `Model.start_server`)."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to bind. Only loopback unless named otherwise."""
    port: Port = 0
    """0 picks a free port; any other number is taken or is an error."""
    uds: Annotated[str, Field(min_length=1)] | None = None
    """Path of a Unix socket to listen on instead, open to this user alone."""
    model_id: Annotated[str, Field(min_length=1)] | None = None
    """The name clients use; the model's own if not given."""
    queue_limit: Annotated[int, Field(ge=1)] = 64
    """Requests in flight at once, running and waiting; one more is answered 429 `queue_full`."""
    suspended_requests: Literal["wait", "fail"] = "wait"
    """While the model is suspended requests wait, also those under way; or end with 503 `suspended`."""
    api_key: Annotated[str, Field(min_length=1, pattern=r"^[\x21-\x7e]+$")] | None = None
    """What clients must send as `Authorization: Bearer …` or `x-api-key`; "auto" makes one up, told once."""
    allowed_hosts: list[Annotated[str, Field(min_length=1)]] = []
    """Further names that the Host header may have, beside addresses, localhost and `host`; "*" is any."""
    allowed_origins: list[Annotated[str, Field(min_length=1)]] = []
    """Web pages that may call the server, such as "https://example.org"; "*" is any. None but its own if empty."""
    image_urls: Literal["none", "public", "any"] = "none"
    """Which http(s) URLs of images are fetched: none, those at public addresses, or those of this machine and its
    network too, which lets clients make the server ask there."""
    allowed_image_paths: list[Annotated[str, Field(min_length=1)]] = []
    """Folders of this machine from which requests may name images, by path or file URL; none if empty."""
    body_limit_bytes: Annotated[int, Field(ge=1024)] = 32 << 20
    """A larger request body is answered 413."""
    models: list[ServedModel] = []
    """Further models, loaded at their first use."""
    models_file: Annotated[str, Field(min_length=1)] | None = None
    """A TOML file with tables `[[models]]` of the same keys."""
    model_store: bool = False
    """Serve every model of the store and the Hugging Face cache, under the names that `lib-mlx list` shows."""
    keep_alive: KeepAlive | None = None
    """Unload a further model after so long without a request: seconds, or a text like "5m"; negative or None: never."""
    memory_limit_bytes: Annotated[int, Field(ge=1)] | None = None
    """The most that all models may take; those used least recently go first. What the machine has if not given."""
    profiles: dict[str, Profile] = {}
    """Named bounds beside the built-in `fast`, `balanced` and `quality`, or in their place."""


C = TypeVar("C", bound=Config)


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
    kind: type[Config], error: pydantic.ValidationError, values: Mapping[str, Any]
) -> InvalidArgument:
    first = error.errors(include_url=False, include_context=False)[0]
    key = _as_written(kind, ".".join(str(part) for part in first["loc"]), values)
    if first["type"] == "extra_forbidden":
        known = list(_inner(kind, first["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(first["loc"][-1]), [*known, *map(to_camel, known)], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
        return InvalidArgument(f"Unknown key {key!r}.", hint=hint, param=key)
    if first["type"] == "missing":
        return InvalidArgument(f"The key {key!r} is required.", param=key)
    return InvalidArgument(f"Invalid value for {key!r}: {first['msg']}.", param=key)


def _inner(kind: type[BaseModel], keys: Sequence[int | str]) -> type[BaseModel]:
    """Return the schema of the object that `keys` lead to, as far as they are fields."""
    for key in keys:
        fields = {name: field for own, field in kind.model_fields.items() for name in (own, to_camel(own))}
        if key in fields:
            kind = next(_schemas(fields[str(key)].annotation), kind)
    return kind


def _schemas(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the schemas that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _schemas(part)


def _as_written(kind: type[Config], key: str, values: Mapping[str, Any]) -> str:
    """Return `key` in snake_case unless the caller wrote it otherwise; pydantic reports the camelCase alias."""
    if key in values:
        return key
    return next((name for name in kind.model_fields if key in {name, to_camel(name)}), key)
