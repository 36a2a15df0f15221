"""The models of the server, in OpenAI's shape, and their loading and unloading."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from starlette.routing import Route

from lib_mlx.errors import Cancelled, LibMlxError
from lib_mlx.server.http import JsonResponse, WireModel, read_json, watched
from lib_mlx.server.openapi import described
from lib_mlx.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.registry import ModelEntry, Registry
    from lib_mlx.registry.facts import ModelFacts
    from lib_mlx.server.answers import ModelList, ModelObject


class LoadRequest(WireModel):
    """The body of `POST /v1/models/{id}/load`."""

    wait: bool = True
    """False: answer at once with 202; `GET /v1/models/{id}` and `GET /v1/events` tell how the load goes."""


class AdapterRequest(WireModel):
    """The body of `POST /v1/models/{id}/adapter`."""

    name: str | None
    """One of the model's `adapters`; null: none."""


async def list_models(request: Request) -> Response:
    """`GET /v1/models`: all that can be asked for, loaded or not."""
    registry = state_of(request).registry

    def read() -> ModelList:
        models = [model_object(entry, _facts(registry, entry)) for entry in registry.entries()]
        return {"object": "list", "data": models}

    return JsonResponse(await asyncio.to_thread(read))  # may look at the disk


async def retrieve_model(request: Request) -> Response:
    """`GET /v1/models/{id}`."""
    entry, registry = await _find(request), state_of(request).registry
    return JsonResponse(model_object(entry, await asyncio.to_thread(_facts, registry, entry)))


@described(body=LoadRequest, optional=True, statuses=(200, 202))
async def load_model(request: Request) -> Response:
    """`POST /v1/models/{id}/load`: have a model in memory; nothing happens to one that is."""
    body = await read_json(request, LoadRequest) if await _has_body(request) else LoadRequest()
    state, name = state_of(request), request.path_params["id"]
    if body.wait:
        async with state.sessions.lease(name, tends=True):
            pass
    else:
        await asyncio.to_thread(state.registry.preload, name)
    return JsonResponse(model_object(await _find(request)), 200 if body.wait else 202)


@described(body=AdapterRequest)
async def change_adapter(request: Request) -> Response:
    """`POST /v1/models/{id}/adapter`: have another adapter, or none, from the next request on.

    Answers when the requests under way have ended and the adapter is in place; the model is loaded if it is not.
    """
    body = await read_json(request, AdapterRequest)
    async with state_of(request).sessions.lease(request.path_params["id"], tends=True) as kept:
        changing = await asyncio.to_thread(kept.engine.adapters.change, body.name)
        try:
            async with watched(request, changing.cancel):
                await state_of(request).sessions.wait_for(changing)
        except asyncio.CancelledError:
            if await request.is_disconnected():
                raise Cancelled("The client went away.") from None
            raise
    return JsonResponse(model_object(await _find(request)))


async def unload_model(request: Request) -> Response:
    """`DELETE /v1/models/{id}`: give a model's memory back. It stays known, and is loaded again when asked for."""
    entry = await _find(request)
    await asyncio.to_thread(state_of(request).registry.unload, entry.id)
    return JsonResponse({"id": entry.id, "object": "model", "deleted": True})


async def _find(request: Request) -> ModelEntry:
    return await asyncio.to_thread(state_of(request).registry.find, request.path_params["id"])


async def _has_body(request: Request) -> bool:
    return "content-type" in request.headers or request.headers.get("content-length", "0") != "0"


def _facts(registry: Registry, entry: ModelEntry) -> ModelFacts | None:
    """Return what the files of a model say, if they say it."""
    with contextlib.suppress(LibMlxError, OSError):
        return registry.facts(entry)
    return None


def model_object(entry: ModelEntry, facts: ModelFacts | None = None) -> ModelObject:
    """Return a model as `/v1/models` shows it: OpenAI's fields and ours.

    What `facts` are asked for, a loaded model knows itself.
    """
    engine = entry.engine
    known = engine.capabilities if engine else facts.capabilities if facts else None
    lengths = [facts.context_length, entry.spec.config.context_length] if facts else []
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created,
        "owned_by": "local",
        "status": entry.status,
        "progress": entry.progress,
        "stage": entry.stage,
        "context_length": engine.context_length if engine else min(filter(None, lengths), default=None),
        "adapter": engine.adapters.current if engine else entry.spec.config.adapter_path,
        "adapters": list(entry.spec.config.adapters),
        "capabilities": None if known is None else list(known),
        "memory_bytes": entry.bytes,
        "requests": entry.busy,
        "pinned": entry.spec.pinned,
        "expires_in_s": entry.expires_in_s,
        "error": entry.error,
    }


def routes(prefix: str) -> list[Route]:
    """Return the routes below `prefix`."""
    return [
        Route(f"{prefix}/models", list_models, methods=["GET"]),
        Route(f"{prefix}/models/{{id:path}}/load", load_model, methods=["POST"]),
        Route(f"{prefix}/models/{{id:path}}/adapter", change_adapter, methods=["POST"]),
        Route(f"{prefix}/models/{{id:path}}", retrieve_model, methods=["GET"]),
        Route(f"{prefix}/models/{{id:path}}", unload_model, methods=["DELETE"]),
    ]
