"""Validation against the published schemas copied to tests/specs (its README names their sources)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema

SPECS = Path(__file__).parent.parent / "specs"


@functools.cache
def _validator(spec: str, name: str) -> jsonschema.Draft202012Validator:
    document = json.loads((SPECS / f"{spec}.json").read_text())
    return jsonschema.Draft202012Validator({**document, "$ref": f"#/components/schemas/{name}"})


def check(spec: str, name: str, value: Any) -> None:
    """Demand that `value` is what `name` of `spec` ("openai" or "openresponses") describes."""
    error = jsonschema.exceptions.best_match(_validator(spec, name).iter_errors(value))
    assert error is None, f"{name}: {error.json_path}: {error.message}"


@functools.cache
def event_schemas(spec: str) -> dict[str, str]:
    """Return the schema's name for each stream event's type."""
    schemas = json.loads((SPECS / f"{spec}.json").read_text())["components"]["schemas"]
    return {
        kind: name
        for name, schema in schemas.items()
        if name.endswith("Event")
        for kind in schema.get("properties", {}).get("type", {}).get("enum", [])
    }
