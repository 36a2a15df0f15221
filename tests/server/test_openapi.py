"""The server's description of itself is true: schemathesis asks every route for what it describes, and for worse."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.routing import Route

import lib_mlx
from lib_mlx.config import ServerConfig
from lib_mlx.registry import Registry
from lib_mlx.runtime import get_runtime
from lib_mlx.server.app import create_app
from lib_mlx.server.state import ServerState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schemathesis.schemas import BaseSchema

CHECKS: Any = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def described(crafted: Path) -> Iterator[lib_mlx.Server]:
    """A server whose answers are short."""
    with lib_mlx.load_model(crafted, model_id="crafted", context_length=200) as model, model.start_server() as server:
        yield server


@pytest.fixture(scope="module")
def document(described: lib_mlx.Server) -> BaseSchema:
    """Its description."""
    return schemathesis.openapi.from_url(f"{described.base_url}/openapi.json")


def served() -> list[tuple[str, str]]:
    """Every route's path and method."""
    app = create_app(ServerState(Registry(), ServerConfig(), get_runtime()))
    return [
        (route.path.replace(":path}", "}"), method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]


# The stream of events never ends; those without /v1 are the same endpoints again.
ASKED = [one for one in dict.fromkeys(served()) if one[0].startswith(("/v1/", "/anthropic/", "/api/", "/metrics"))]


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("path", "method"), [one for one in ASKED if one[0] != "/v1/events"])
def test_every_route(
    described: lib_mlx.Server, document: BaseSchema, path: str, method: str, mode: GenerationMode
) -> None:
    """Requests that fit the description, or do not, make no server error and no answer that is not described."""

    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.validate_response(case.call(timeout=60), checks=CHECKS)

    with suppress(Unsatisfiable):  # nothing about the request can be wrong
        ask()
    if path == "/v1/drain":  # else the other routes would have nothing to say
        httpx2.delete(f"{described.base_url}/v1/drain")


def test_it_is_a_valid_document_of_all_routes(described: lib_mlx.Server) -> None:
    """Each route is in it with each method, its schemas are schemas, and it is the same when asked again."""
    document = httpx2.get(f"{described.base_url}/openapi.json").json()
    assert set(served()) == {(path, method) for path, operations in document["paths"].items() for method in operations}
    for one in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(one)
    assert document == httpx2.get(f"{described.base_url}/openapi.json").json()
    ids = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(ids) == len(set(ids))
