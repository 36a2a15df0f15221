"""docs/schemas/ is what the code is: up to date, true of live answers, and the same as header and Python API."""

from __future__ import annotations

import ctypes
import functools
import inspect
import json
import re
import threading
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

import httpx2
import jsonschema
import pytest
from pydantic import TypeAdapter

import lib_mlx
from lib_mlx import abi, operations
from lib_mlx.config import LoadConfig, ServedModel, ServerConfig, parse_config
from lib_mlx.errors import LibMlxError
from lib_mlx.runtime import Runtime
from lib_mlx.status import ModelState, ModelStatus, ServerState, ServerStatus
from tests.abi.conftest import ROOT
from tests.server.test_server import eventually
from tests.test_errors import all_errors
from tools import schemas

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER = (ROOT / "include/lib_mlx.h").read_text()


@functools.cache
def validator(name: str, *, closed: bool = False) -> jsonschema.Draft202012Validator:
    """The committed schema of that name; `closed`: no object may have further keys, as later versions may."""
    schema = json.loads((schemas.FOLDER / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(close(schema) if closed else schema)


def close(schema: Any) -> Any:
    """Forbid what a schema does not name."""
    if isinstance(schema, list):
        return [close(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    further = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {**further, **{key: close(part) for key, part in schema.items()}}


def check(name: str, value: Any) -> None:
    """Demand that `value` fits a schema, and has no key that the schema does not know."""
    error = jsonschema.exceptions.best_match(validator(name, closed=True).iter_errors(value))
    assert error is None, f"{name}: {error.json_path}: {error.message}"


def test_the_files_are_up_to_date() -> None:
    """`python -m tools.schemas` would change nothing."""
    there = {
        str(path.relative_to(schemas.FOLDER)): json.loads(path.read_text()) for path in schemas.FOLDER.rglob("*.json")
    }
    assert there == json.loads(json.dumps(schemas.schemas()))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """A runtime of the test's own behind the entry points."""
    own = Runtime()
    monkeypatch.setattr(abi, "get_runtime", lambda: own)
    yield own
    own.shutdown()


def call(
    name: str, handle: int = 0, config: dict[str, Any] | None = None, *, fails: str | None = None
) -> dict[str, Any]:
    """Carry out an operation of the C library, well or with that code; answer and configuration fit their schemas."""
    if config is not None:
        check(f"c/{name}.request", config)
    raw = None if config is None else json.dumps(config).encode()
    answer = json.loads(abi.dispatch(operations.Operation[name.upper()], handle, raw))
    check(f"c/{name}.response", answer)
    assert isinstance(answer, dict)
    assert (answer["ok"], answer.get("error", {}).get("code")) == (fails is None, fails)
    return answer


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_live_answers(runtime: Runtime, crafted: Path, isolation: str) -> None:
    """Every answer of a model's life, every status on the way, every event and the server's own answers fit."""
    published: list[dict[str, Any]] = []
    abi.attach(lambda _, raw: published.append(json.loads(raw)) if raw else None, model_ready=lambda: None)
    path = str(crafted)
    handle = call("load_model", config={"model_path": path, "isolation": isolation, "model_id": "own"})["handle"]
    models = [{"model_path": path, "model_id": "other", "keep_alive": "50ms", "prefix_cache_bytes": 0}]
    server = call("start_server", handle, {"models": models, "keep_alive": 5})["server"]
    events: list[tuple[str, dict[str, Any]]] = []
    listening = threading.Thread(target=listen, args=(server["base_url"], events))
    listening.start()
    with httpx2.Client(base_url=server["base_url"], timeout=30) as client:
        eventually(lambda: bool(events))
        client.post("/v1/models/other/load").raise_for_status()
        for url, name in (
            ("/livez", "livez"),
            ("/health", "health"),
            ("/v1/models", "models"),
            ("/v1/models/own", "model"),
            ("/v1/status", "status"),
        ):
            check(f"http/{name}.response", client.get(url).json())
        assert client.get("/openapi.json").json() == json.loads((schemas.FOLDER / "http/openapi.json").read_text())
        loop = {"messages": [{"role": "user", "content": "loop"}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=loop, headers={"x-request-id": "mine"}) as stream:
            pieces = stream.iter_raw()
            next(pieces)
            check("http/cancel.response", httpx2.delete(f"{server['base_url']}/v1/requests/mine").json())
        for name in ("suspend", "resume"):
            call(name, handle)
            check("http/health.response", client.get("/health").json())
    call("stop_server", handle)
    listening.join(10)
    call("unload_model", handle)
    call("shutdown")
    for name in ("unload_model", "suspend", "stop_server"):
        call(name, handle, fails="invalid_handle")
    assert len(published) > 5
    for status in published:
        check("c/server_status.response", status)
    assert {name for name, _ in events} == {"model", "handle"}
    for name, event in events:
        check(f"http/event.{name}", event)


def listen(url: str, events: list[tuple[str, dict[str, Any]]]) -> None:
    """Collect events until the server stops."""
    name = ""
    with httpx2.stream("GET", f"{url}/v1/events", timeout=30) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                events.append((name, json.loads(line[6:])))


def test_the_version(library: Path) -> None:
    """What C answers by itself fits, too."""
    function = ctypes.CDLL(str(library)).lib_mlx_version
    function.restype = ctypes.c_char_p
    check("c/version.response", json.loads(function()))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (LoadConfig, "load_model", {}),
        (LoadConfig, "load_model", {"model_path": 1}),
        (LoadConfig, "load_model", {"model_path": "x", "kv_bits": 5}),
        (LoadConfig, "load_model", {"model_path": "x", "log_level": "loud"}),
        (LoadConfig, "load_model", {"model_path": "x", "nonsense": True}),
        (ServerConfig, "start_server", {"port": 70000}),
        (ServerConfig, "start_server", {"keep_alive": "soon"}),
        (ServerConfig, "start_server", {"models": [{"model_id": "x"}]}),
        (ServerConfig, "start_server", {"profiles": {"x": {"max_tokens": 0}}}),
    ],
)
def test_what_is_refused_does_not_fit(kind: type[Any], name: str, value: dict[str, Any]) -> None:
    """The schemas of requests are as strict as the code."""
    with pytest.raises(LibMlxError):
        parse_config(kind, value)
    assert not validator(f"c/{name}.request").is_valid(value)


# The header


def comment_of(function: str) -> str:
    """The comment before a function's declaration."""
    before = HEADER.partition(f"char *{function}(")[0]
    return before[before.rindex("/*") :]


def listed(comment: str) -> set[str]:
    """The keys that a comment lists, one at the beginning of a line."""
    return set(re.findall(r"^ \*     (\w+) +\S", comment, re.MULTILINE))


@pytest.mark.parametrize(
    ("function", "kind"), [("lib_mlx_load_model", LoadConfig), ("lib_mlx_start_server", ServerConfig)]
)
def test_the_header_lists_the_keys(function: str, kind: type[LoadConfig | ServerConfig]) -> None:
    """Each configuration's keys stand in the header, and no other."""
    assert listed(comment_of(function)) == set(kind.model_fields)


@pytest.mark.parametrize(
    ("function", "kind"), [("lib_mlx_load_model", LoadConfig), ("lib_mlx_start_server", ServerConfig)]
)
def test_the_header_has_the_defaults(function: str, kind: type[LoadConfig | ServerConfig]) -> None:
    """Defaults stand in brackets, or first of the values to choose from, which are all there."""
    schema = kind.model_json_schema(by_alias=False)["properties"]
    for key, text in re.findall(r"^ \*     (\w+) +(\S.*)", comment_of(function), re.MULTILINE):
        written = re.match(r"[^:(]*\((.*?)\):", text)
        choices = next((part["enum"] for part in [schema[key], *schema[key].get("anyOf", [])] if "enum" in part), [])
        if choices:
            first, *others = re.findall(r'("\w+"|\d+)', re.match(r'(("\w+"|\d+)[ |]*)+', text)[0])  # type: ignore[index]
            assert [json.loads(value) for value in (first, *others)] == choices, key
        default = schema[key].get("default")
        if default not in (None, [], {}, *choices[:1]):
            assert written is not None, key
        assert written is None or json.loads(written[1]) == default, key


@pytest.mark.parametrize("name", sorted(schemas.ANSWERS))
def test_the_header_has_the_answers(name: str) -> None:
    """Each function's answer has in the header the keys that it has, and no other."""
    text = comment_of(f"lib_mlx_{name}").partition("Answer: ")[2]
    ends = [at for at, one in enumerate(text) if one == "}" and text[: at + 1].count("{") == text[: at + 1].count("}")]
    text = re.sub(r':\s*"[^"]*"(\s*\|\s*"[^"]*")*', ":", text[: ends[0]])
    assert set(re.findall(r'"(\w+)"', text)) == keys_of(TypeAdapter(schemas.ANSWERS[name]).json_schema())


def keys_of(schema: Any) -> set[str]:
    """The keys of all objects in a schema but those of errors, which every failure has."""
    if isinstance(schema, list):
        return set().union(*map(keys_of, schema))
    if not isinstance(schema, dict) or schema.get("title") == "ErrorObject":
        return set()
    own = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    return own.union(*map(keys_of, schema.values()))


def test_the_header_lists_the_status() -> None:
    """So do the keys of the status, with every state there is."""
    comment = comment_of("lib_mlx_server_status")
    for kind, name, states in ((ModelStatus, "model", ModelState), (ServerStatus, "server", ServerState)):
        written = re.search(rf'"{name}": {{(.*?)}}', comment, re.DOTALL)
        assert written is not None
        assert set(re.findall(r'"(\w+)"', written[1])) == {field.name for field in fields(kind)}
        line = re.search(rf"{name}\.status +(.*)", comment)
        assert line is not None
        assert set(re.findall(r'"(\w+)"', line[1])) == set(get_args(states))


def test_the_header_lists_the_codes() -> None:
    """Every code in the header is one of ours or the native library's; those that only HTTP has are not there."""
    codes = listed(HEADER[HEADER.index("/* Error codes.") :])
    known = {kind.code for kind in all_errors()}
    assert codes - known == {"python_not_found", "python_mismatch", "python_init", "forked"}
    clauses = " ".join(re.findall(r"Errors:(.*?)(?:Blocks|\*/)", HEADER, re.DOTALL))
    named = set(re.findall(r"[a-z]+_[a-z_]+", clauses))
    assert named <= codes


def test_the_keys_of_further_models() -> None:
    """The header names what a further model has beside a load's keys."""
    own = set(ServedModel.model_fields) - set(LoadConfig.model_fields)
    written = comment_of("lib_mlx_start_server")
    assert own == {"pinned", "keep_alive"}
    assert all(f"`{key}`" in written for key in own)


# Python


def test_the_python_api_is_the_same() -> None:
    """`load_model` and `start_server` take the keys as keywords; a server has what its status has."""
    assert next(iter(inspect.signature(lib_mlx.load_model).parameters)) == "model_path"
    for function in (lib_mlx.load_model, lib_mlx.Model.start_server):
        assert inspect.signature(function).parameters["config"].kind is inspect.Parameter.VAR_KEYWORD
    attributes = set(re.findall(r"self\.(\w+) =", inspect.getsource(lib_mlx.Server.__init__)))
    assert {field.name for field in fields(ServerStatus)} - {"status"} <= attributes
