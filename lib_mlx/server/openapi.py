"""The server's description of itself: `GET /openapi.json` (https://spec.openapis.org/oas/v3.1.0).

Made from the routes there are and the models that read their bodies, so that it cannot say what is not so.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.routing import Route

from lib_mlx.server.http import JsonResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

F = TypeVar("F")

EVENTS = "text/event-stream"
_REF = "#/components/schemas/{model}"
_OPEN_PATHS = frozenset({"/health", "/v1/health", "/livez", "/api/health"})
_ERROR_PATHS = {"/anthropic": "AnthropicError", "/v1/messages": "AnthropicError", "/api": "OllamaError"}
_ERRORS: dict[str, Any] = {
    "OpenAIError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "string"},
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
    "OllamaError": {
        "type": "object",
        "required": ["error", "code"],
        "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
    },
}


@dataclass(frozen=True)
class Description:
    """What an endpoint takes and gives."""

    body: type[BaseModel] | None = None
    optional: bool = False
    """Whether the body may be left out."""
    answers: tuple[str, ...] = ("application/json",)
    """The media types of its answers."""
    query: type[BaseModel] | None = None
    """What its query may have."""
    statuses: tuple[int, ...] = (200,)


def described(**description: Any) -> Callable[[F], F]:
    """Describe an endpoint by the fields of `Description`."""

    def attach(endpoint: F) -> F:
        endpoint.description = Description(**description)  # type: ignore[attr-defined]
        return endpoint

    return attach


async def openapi(request: Request) -> Response:
    """`GET /openapi.json`."""
    state = request.app.state
    if not hasattr(state, "openapi"):  # it takes a while, and does not change
        state.openapi = document(request.app.routes)
    return JsonResponse(state.openapi)


def routes() -> list[Route]:
    """Return the route."""
    return [Route("/openapi.json", openapi, methods=["GET"])]


def document(served: Sequence[BaseRoute]) -> dict[str, Any]:
    """Return the document of the routes that are served."""
    from pydantic.json_schema import models_json_schema

    known = [route for route in served if isinstance(route, Route)]
    kinds = {body: None for route in known if (body := _description(route).body)}
    names, schemas = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_REF)
    bodies = {kind: names[kind, "validation"] for kind in kinds}
    paths: dict[str, dict[str, Any]] = {}
    for route in known:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation = _operation(route, path, method, bodies)
            paths.setdefault(path, {}).setdefault(method.lower(), operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lib_mlx", "version": version("lib-mlx")},
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), **_ERRORS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _description(route: Route) -> Description:
    return getattr(route.endpoint, "description", Description())


def _operation(route: Route, path: str, method: str, bodies: Mapping[type[BaseModel], Any]) -> dict[str, Any]:
    description = _description(route)
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}{re.sub(r'[^0-9a-zA-Z]+', '_', path)}",
        "summary": _summary(route.endpoint),
        "responses": _responses(path, description),
    }
    if parameters := [*_parameters(path, description)]:
        operation["parameters"] = parameters
    if description.body is not None:
        schema = bodies[description.body]
        form = {"type": "object", "required": ["request"], "properties": {"request": schema}}
        operation["requestBody"] = {
            "required": not description.optional,
            "content": {
                "application/json": {"schema": schema},
                "multipart/form-data": {"schema": form, "encoding": {"request": {"contentType": "application/json"}}},
            },
        }
    if path not in _OPEN_PATHS:
        operation["security"] = [{}, {"bearer": []}, {"key": []}]
    return operation


def _parameters(path: str, description: Description) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    if description.query is not None:
        schema = description.query.model_json_schema()
        for name, parameter in schema["properties"].items():
            yield {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": parameter}


def _responses(path: str, description: Description) -> dict[str, Any]:
    kind = next((name for root, name in _ERROR_PATHS.items() if path.startswith(f"{root}/") or path == root), None)
    # Anthropic's clients get errors in their own shape on every path.
    shapes = [{"$ref": _REF.format(model=name)} for name in dict.fromkeys((kind or "OpenAIError", "AnthropicError"))]
    error = {"description": "An error.", "content": {"application/json": {"schema": {"anyOf": shapes}}}}
    content: dict[str, Any] = {answer: {"schema": {}} for answer in description.answers}
    good = {str(status): {"description": "The answer.", "content": content} for status in description.statuses}
    return {**good, "4XX": error, "5XX": error}


def _summary(endpoint: Any) -> str:
    """Return what the endpoint's docstring says after its route."""
    first = (inspect.getdoc(endpoint) or "").partition("\n")[0]
    head, colon, rest = first.partition("`: ")
    return (rest if colon else head).rstrip(".")
