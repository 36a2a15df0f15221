"""Models: the list in pages, and what each can do (platform.claude.com/docs/en/api/models)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lib_mlx.errors import InvalidArgument
from lib_mlx.server.http import WireModel, validate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.datastructures import QueryParams

    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.registry import ModelEntry


class ModelsQuery(WireModel):
    """The parameters of the list."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    before_id: str | None = None
    after_id: str | None = None
    lifecycle: Annotated[list[Literal["active", "deprecated", "retired"]], Field(max_length=3)] | None = None
    beta: str | None = None
    """Added by Anthropic's own client to the routes of its beta."""


def read_query(query: QueryParams) -> ModelsQuery:
    """Return the parameters in a URL.

    Raises:
        InvalidArgument: one of them is unknown or has a wrong value.
    """
    value: dict[str, Any] = {}
    for name in query:
        plain = name.removesuffix("[]")
        value[plain] = query.getlist(name) if plain == "lifecycle" else query[name]
    limit = value.get("limit", "")
    if limit.isascii() and limit.isdecimal() and len(limit) < 10:
        value["limit"] = int(limit)
    return validate(ModelsQuery, value)


def models_page(entries: Sequence[ModelEntry], query: ModelsQuery) -> dict[str, Any]:
    """Return the page of `entries` that `query` asks for, newest first.

    Raises:
        InvalidArgument: it names no model to begin at, or two.
    """
    models = sorted(entries, key=lambda entry: -entry.created)
    if query.lifecycle is not None and "active" not in query.lifecycle:
        models = []
    if query.before_id is not None and query.after_id is not None:
        raise InvalidArgument("'before_id' and 'after_id' exclude each other.", param="before_id")
    if query.before_id is not None:
        end = _find(models, query.before_id, "before_id")
        page = models[max(end - query.limit, 0) : end]
        more = end > query.limit
    else:
        start = 0 if query.after_id is None else _find(models, query.after_id, "after_id") + 1
        page = models[start : start + query.limit]
        more = len(models) > start + query.limit
    return {
        "data": [model_info(entry) for entry in page],
        "has_more": more,
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
    }


def _find(models: Sequence[ModelEntry], name: str, param: str) -> int:
    for at, entry in enumerate(models):
        if entry.id == name:
            return at
    raise InvalidArgument(f"There is no model {name!r} to begin at.", param=param)


def model_info(entry: ModelEntry) -> dict[str, Any]:
    """Return one model; what is not known before it is loaded is null."""
    engine = entry.engine
    return {
        "id": entry.id,
        "type": "model",
        "display_name": entry.id,
        "created_at": datetime.fromtimestamp(entry.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "max_input_tokens": engine.context_length if engine else None,
        "max_tokens": engine.context_length if engine else None,
        "capabilities": _capabilities(engine) if engine else None,
    }


def _capabilities(engine: EngineModel) -> dict[str, Any]:
    yes, no = {"supported": True}, {"supported": False}
    return {
        "batch": no,
        "citations": no,
        "code_execution": no,
        "context_management": no,
        "effort": {**no, "low": no, "medium": no, "high": no, "max": no, "xhigh": no},
        "image_input": {"supported": "vision" in engine.capabilities},
        "pdf_input": no,
        "server_tools": {**no, "code_execution": no, "web_search": no},
        "structured_outputs": yes,
        "thinking": {
            "supported": engine.reasons,
            "types": {
                "adaptive": yes,
                "between_tools": no,
                "disabled": yes,
                "enabled": {"supported": engine.limits_reasoning},
            },
        },
    }
