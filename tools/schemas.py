"""Writes docs/schemas/: `python -m tools.schemas`. tests/test_schemas.py demands that what is there is up to date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lib_mlx import answers
from lib_mlx.config import LoadConfig, ServerConfig
from lib_mlx.server import answers as http
from lib_mlx.status import Status

FOLDER = Path(__file__).resolve().parent.parent / "docs/schemas"
_BASE = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
ANSWERS: dict[str, Any] = {
    "load_model": answers.Loaded,
    "start_server": answers.Served,
    "stop_server": answers.Stopped,
    "server_status": answers.Reported,
    "unload_model": answers.Unloaded,
    "suspend": answers.Suspended,
    "resume": answers.Suspended,
    "shutdown": answers.Done,
    "version": answers.Described,
}
_REQUESTS = {"load_model": LoadConfig, "start_server": ServerConfig}
_HTTP = {
    "livez.response": http.Live,
    "health.response": http.Health,
    "models.response": http.ModelList,
    "model.response": http.ModelObject,
    "status.response": http.ServerReport,
    "cancel.response": http.CancelledRequest,
    "drain.response": http.Drain,
    "event.model": http.ModelObject,
    "event.handle": Status,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Return every schema by its file's name."""
    made: dict[str, dict[str, Any]] = {}
    for name, request in _REQUESTS.items():
        made[f"c/{name}.request.json"] = {**_BASE, **request.model_json_schema(by_alias=False)}
    for name, answer in ANSWERS.items():
        made[f"c/{name}.response.json"] = {**_BASE, **TypeAdapter(answer | answers.Failure).json_schema()}
    for name, kind in _HTTP.items():
        made[f"http/{name}.json"] = {**_BASE, **TypeAdapter(kind).json_schema(mode="serialization")}
    made["http/openapi.json"] = _openapi()
    return made


def _openapi() -> dict[str, Any]:
    from lib_mlx.registry import Registry
    from lib_mlx.runtime import Runtime
    from lib_mlx.server.app import create_app
    from lib_mlx.server.openapi import document
    from lib_mlx.server.state import ServerState

    return document(create_app(ServerState(Registry(), ServerConfig(), Runtime())).routes)


def main() -> None:
    """Write what has changed, and remove what is no more."""
    made = {FOLDER / name: json.dumps(schema, indent=2) + "\n" for name, schema in schemas().items()}
    for path in FOLDER.rglob("*.json"):
        if path not in made:
            path.unlink()
    for path, text in made.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(path)


if __name__ == "__main__":
    main()
