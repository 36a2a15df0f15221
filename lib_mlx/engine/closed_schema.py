"""Schemas without room for properties that nobody declared.

JSON Schema allows an object any further property unless `additionalProperties` says otherwise. A model held to such a
schema goes on inventing properties until it is cut, so that the answer is no JSON. The closed schema is the narrower
one: what fits it fits the original too. llama.cpp's and XGrammar's grammars are closed in the same way.
"""

from __future__ import annotations

from typing import Any

_COMBINING = frozenset({"allOf", "oneOf", "not", "if", "dependentSchemas", "unevaluatedProperties", "$dynamicRef"})
"""Where one of these stands, other parts of the schema may need the properties that a part does not declare."""
_BY_NAME = ("properties", "$defs", "definitions")
_LISTS = ("anyOf", "prefixItems")
_OPEN = frozenset({"additionalProperties", "patternProperties", "propertyNames", "minProperties"})


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return `schema` with its objects closed, or as it is where that could change what it means."""
    return schema if _combines(schema) else _closed(schema)


def _parts(schema: dict[str, Any]) -> list[Any]:
    """Return the schemas that stand in `schema`, and nothing that only looks like one (`const`, `default`, …)."""
    parts = [part for name in _BY_NAME if isinstance(named := schema.get(name), dict) for part in named.values()]
    parts += [part for name in _LISTS if isinstance(listed := schema.get(name), list) for part in listed]
    return [*parts, schema.get("items"), schema.get("additionalProperties")]


def _combines(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    joined = "properties" in schema and ("anyOf" in schema or "$ref" in schema)
    return joined or not _COMBINING.isdisjoint(schema) or any(_combines(part) for part in _parts(schema))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for name in _BY_NAME:
        if isinstance(named := schema.get(name), dict):
            result[name] = {key: _closed(part) for key, part in named.items()}
    for name in _LISTS:
        if isinstance(listed := schema.get(name), list):
            result[name] = [_closed(part) for part in listed]
    for name in ("items", "additionalProperties"):
        if name in schema:
            result[name] = _closed(schema[name])
    if _OPEN.isdisjoint(schema) and _declares_all(schema):
        result["additionalProperties"] = False
    return result


def _declares_all(schema: dict[str, Any]) -> bool:
    """Whether `schema` declares properties, and those that it requires are among them."""
    properties, required = schema.get("properties"), schema.get("required", [])
    return (
        isinstance(properties, dict) and isinstance(required, list) and all(name in [*properties] for name in required)
    )
