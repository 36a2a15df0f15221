"""Reading requests and answering with JSON, for every dialect."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import pydantic
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from lib_mlx.errors import Cancelled, InvalidArgument, InvalidJson, PayloadTooLarge, UnsupportedMediaType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from lib_mlx.engine.event_stream import ChoiceEvent
    from lib_mlx.server.session import Session

MAX_BODY_BYTES = 32 << 20
MAX_DEPTH = 100

M = TypeVar("M", bound=BaseModel)


class WireModel(BaseModel):
    """Base of every request body: strict types, and an unknown field is an error that names it."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, protected_namespaces=(), hide_input_in_errors=True
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Drop unknown fields that are null: OpenAI's clients send whole objects back, with fields they added."""
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item is not None or key in cls.model_fields}


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
    """Read and validate the body of `request`.

    Raises:
        UnsupportedMediaType: it is not declared as JSON; a web page cannot send JSON across origins unasked.
        PayloadTooLarge: it is over `MAX_BODY_BYTES`.
        InvalidJson, InvalidArgument: it is not what `kind` describes; `param` names the field.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"The content type {media_type!r} is not supported.", hint="Send the header Content-Type: application/json."
        )
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.", hint="Send less.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"The body is not valid JSON: {error}.", hint="Send a JSON object in UTF-8.") from None
    if not isinstance(value, dict):
        raise InvalidJson("The body must be a JSON object.", hint="Send a JSON object in UTF-8.")
    if _depth(value) > MAX_DEPTH:
        raise InvalidJson(f"The body is nested more than {MAX_DEPTH} levels deep.", hint="Flatten it.")
    return validate(kind, value)


def _depth(value: Any) -> int:
    """Return the levels of nesting, without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def validate(kind: type[M], value: dict[str, Any]) -> M:
    """Return `value` as `kind`; raises InvalidArgument for the first thing wrong with it."""
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        # Of a union's complaints the deepest one is about what the client meant.
        first = max(error.errors(include_url=False), key=lambda item: len(item["loc"]))
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


def _is_field(part: str) -> bool:
    """Tell a field's name from a union member's, which pydantic puts into the path too."""
    members = {"str", "int", "float", "bool", *(kind.__name__ for kind in WireModel.__subclasses__())}
    return part not in members and "[" not in part


async def collect(request: Request, session: Session) -> list[ChoiceEvent]:
    """Wait for all events of `session`; end it as soon as the client of `request` goes away.

    Raises:
        Cancelled: the client went away.
    """
    events: list[ChoiceEvent] = []
    try:
        async with _watched(request, session):
            while not session.ended:
                events += await session.next()
    finally:
        session.close()
    return events


@contextlib.asynccontextmanager
async def _watched(request: Request, session: Session) -> AsyncIterator[None]:
    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        session.cancel(Cancelled("The client went away."))

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
