"""Reading requests and answering with JSON, for every dialect."""

from __future__ import annotations

import asyncio
import contextlib
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import pydantic
from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from lib_mlx.errors import (
    Cancelled,
    InvalidArgument,
    InvalidJson,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from lib_mlx.server.multipart import attach, read_parts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema, ErrorDetails
    from starlette.requests import Request

    from lib_mlx.engine.event_stream import ChoiceEvent
    from lib_mlx.server.session import Session

BODY_S = 60.0
MAX_DEPTH = 100
MAX_CONTAINERS = 100_000
"""Objects and lists of a body: each takes a hundred times the memory that it takes bytes."""

M = TypeVar("M", bound=BaseModel)


def _fail_fast(schema: Any) -> None:
    """Set the option of that name in every schema of a list or a dictionary."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict"):  # a field may be called so, and be no text
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, (list, tuple)):
        for part in schema:
            _fail_fast(part)


class WireModel(BaseModel):
    """Base of every request body: strict types, and an unknown field is an error that names it.

    Validation stops at the first thing wrong of a list or an object: pydantic would describe every one of millions.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
        defer_build=True,  # at a body's first use: a server of one dialect need not wait for all of them
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _with_one_unknown(cls, value: Any) -> Any:
        """Drop unknown fields that are null: OpenAI's clients send whole objects back, with fields they added.

        Of those that are to be complained of, the first one is kept.
        """
        if not isinstance(value, dict) or value.keys() <= (known := _field_names(cls)):
            return value
        unknown = [key for key, item in value.items() if item is not None and key not in known]
        if cls.model_config.get("extra") == "forbid":
            unknown = unknown[:1]
        kept = known.union(unknown)
        return {key: item for key, item in value.items() if key in kept}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        """Have lists and dictionaries fail fast."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


@cache
def _field_names(kind: type[WireModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in kind.model_fields.items())


class JsonResponse(Response):
    """A JSON body; dictionaries with other than string keys are a defect and raise."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return `content` as JSON."""
        return orjson.dumps(content)


class QueryModel(WireModel):
    """Base of every query: values come as text."""

    model_config = ConfigDict(strict=False)


def read_query(request: Request, kind: type[M]) -> M:
    """Validate the query of `request`; a name that comes several times, or as `name[]`, has a list of values.

    Raises:
        InvalidArgument: it is not what `kind` describes; `param` names the parameter.
    """
    values: dict[str, Any] = {}
    for key, value in request.query_params.multi_items():
        name = key.removesuffix("[]")
        if name in values or name != key:
            earlier = values.get(name, [])
            values[name] = [*(earlier if isinstance(earlier, list) else [earlier]), value]
        else:
            values[name] = value
    return validate(kind, values)


async def read_json(request: Request, kind: type[M]) -> M:
    """Read and validate the body of `request`: JSON, or a form with JSON in it (see `server.multipart`).

    Raises:
        UnsupportedMediaType: it is declared as neither; a web page cannot send JSON across origins unasked.
        Cancelled: the client went away before it had sent it.
        PayloadTooLarge, RequestTimeout: it is over the server's limit, or takes longer than `BODY_S` to arrive.
        InvalidJson, InvalidArgument: it is not what `kind` describes; `param` names the field.
    """
    return validate(kind, await _read_object(request))


async def _read_object(request: Request) -> dict[str, Any]:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limit = request.app.state.server.config.body_limit_bytes
    files: dict[str, str] = {}
    try:
        async with asyncio.timeout(BODY_S):
            if media_type == "application/json":
                body = b"".join([chunk async for chunk in _bounded(request, limit)])
            elif media_type == "multipart/form-data":
                body, files = await read_parts(request.headers, _bounded(request, limit), limit)
            else:
                raise UnsupportedMediaType(
                    f"The content type {media_type!r} is not supported.",
                    hint="Send the header Content-Type: application/json.",
                )
    except ClientDisconnect:
        raise Cancelled("The client went away.") from None
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {BODY_S:.0f} s.", hint="Send it again.") from None
    return attach(parse_object(body), files)


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise PayloadTooLarge(
                f"The body is larger than {limit} bytes.", hint="Send less, or start the server with body_limit_bytes."
            )
        yield chunk


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of `body`; raises InvalidJson if it is none, nested too deep or of too many parts."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"The body is not valid JSON: {error}.", hint="Send a JSON object in UTF-8.") from None
    if not isinstance(value, dict):
        raise InvalidJson("The body must be a JSON object.", hint="Send a JSON object in UTF-8.")
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """Raise InvalidJson for too many levels or parts; without recursion."""
    depth = containers = 0
    level = [value]
    while level:
        depth += 1
        containers += len(level)
        if depth > MAX_DEPTH:
            raise InvalidJson(f"The body is nested more than {MAX_DEPTH} levels deep.", hint="Flatten it.")
        if containers > MAX_CONTAINERS:
            raise InvalidJson(f"The body has more than {MAX_CONTAINERS} objects and lists.", hint="Send less.")
        inner = (part for item in level for part in (item.values() if isinstance(item, dict) else item))
        level = [part for part in inner if isinstance(part, (dict, list))]


def validate(kind: type[M], value: dict[str, Any]) -> M:
    """Return `value` as `kind`; raises InvalidArgument for the first thing wrong with it."""
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        # A union complains once for each member: what is of the right type, and wrong deep inside, is what was meant.
        first = max(error.errors(include_url=False), key=lambda item: (not _mistyped(item), len(item["loc"])))
    param = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or _is_field(part))
    kind_of = first["type"]
    if kind_of == "extra_forbidden":
        raise InvalidArgument(f"Unknown field {param!r}.", hint="Remove it; it would have no effect.", param=param)
    if kind_of == "missing":
        raise InvalidArgument(f"The field {param!r} is required.", param=param)
    original = first.get("ctx", {}).get("error")
    if isinstance(original, ValueError):
        raise InvalidArgument(f"Invalid value for {param!r}: {original}", param=param)
    raise InvalidArgument(f"Invalid value for {param!r}: {first['msg']}.", param=param)


def _mistyped(complaint: ErrorDetails) -> bool:
    """Tell whether a union's member complains of what may have been meant for another one."""
    in_union = not all(isinstance(part, int) or _is_field(part) for part in complaint["loc"])
    return in_union and (complaint["type"].endswith("_type") or complaint["type"] == "literal_error")


def _is_field(part: str) -> bool:
    """Tell a field's name from a union member's, which pydantic puts into the path too."""
    members = {
        "str",
        "constrained-str",
        "int",
        "float",
        "bool",
        *(kind.__name__ for kind in WireModel.__subclasses__()),
    }
    return part not in members and "[" not in part


async def collect(request: Request, session: Session) -> list[ChoiceEvent]:
    """Wait for all events of `session`; end it as soon as the client of `request` goes away.

    Raises:
        Cancelled: the client went away.
    """
    events: list[ChoiceEvent] = []
    try:
        async with watched(request, lambda: session.cancel(Cancelled("The client went away."))):
            while not session.ended:
                events += await session.next()
    finally:
        session.close()
    return events


@contextlib.asynccontextmanager
async def watched(request: Request, gone: Callable[[], object]) -> AsyncIterator[None]:
    """Call `gone` if the client of `request`, whose body has been read, goes away during the block."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
