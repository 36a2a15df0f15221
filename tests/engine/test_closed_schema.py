"""Schemas without room for properties that nobody declared."""

from __future__ import annotations

from typing import Any

import pytest

from lib_mlx.engine.closed_schema import closed

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
CLOSED_POINT = {**POINT, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (POINT, CLOSED_POINT),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        ({"type": "array", "items": POINT}, {"type": "array", "items": CLOSED_POINT}),
        ({"anyOf": [POINT, {"type": "null"}]}, {"anyOf": [CLOSED_POINT, {"type": "null"}]}),
        (
            {"$ref": "#/$defs/P", "$defs": {"P": POINT}},
            {"$ref": "#/$defs/P", "$defs": {"P": CLOSED_POINT}},
        ),
        ({"additionalProperties": POINT}, {"additionalProperties": CLOSED_POINT}),
    ],
)
def test_declared_properties_are_all_there_are(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    """Objects are closed wherever they stand."""
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**POINT, "additionalProperties": True},
        {**POINT, "additionalProperties": {"type": "string"}},
        {**POINT, "patternProperties": {"^y": {}}},
        {**POINT, "required": ["x", "y"]},
        {"allOf": [POINT, {"properties": {"y": {}}}]},
        {"oneOf": [POINT, {"type": "null"}]},
        {**POINT, "anyOf": [{"required": ["y"]}]},
        {"const": POINT},
        {"default": POINT, "enum": [POINT]},
        {"anyOf": 1, "properties": 2, "required": 3},
        {"properties": {"x": True}, "required": [[]]},
    ],
)
def test_what_asks_for_more_stays_open(schema: dict[str, Any]) -> None:
    """Nothing is closed that says what else there may be, or is combined with what may need more."""
    assert closed(schema) == schema
