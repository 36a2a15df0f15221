"""The routes of OpenAI's dialect."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from lib_mlx.server.http import JsonResponse, collect, read_json
from lib_mlx.server.openai import chat, chat_request, response_endpoints
from lib_mlx.server.sse import EventStreamResponse
from lib_mlx.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.registry import ModelEntry


async def chat_completions(request: Request) -> Response:
    """`POST /v1/chat/completions`."""
    body = await read_json(request, chat_request.ChatRequest)
    generation = chat_request.to_generation(body)
    session = await state_of(request).start(request, body.model, generation, choices=body.n or 1)
    fold = chat.ChatFold(session.model, choices=body.n or 1, include_usage=body.include_usage)
    if body.stream:
        with session.closed_on_error():
            head = chat.encode(fold.opening())
        return EventStreamResponse(session, head, lambda events: chat.render(fold, events))
    for index, event in await collect(request, session):
        fold.add(event, index)
    return JsonResponse(fold.body())


async def list_models(request: Request) -> Response:
    """`GET /v1/models`."""
    entries = await asyncio.to_thread(state_of(request).registry.entries)  # may look at the disk
    return JsonResponse({"object": "list", "data": [_model(entry) for entry in entries]})


async def retrieve_model(request: Request) -> Response:
    """`GET /v1/models/{id}`."""
    entry = await asyncio.to_thread(state_of(request).registry.find, request.path_params["id"])
    return JsonResponse(_model(entry))


def _model(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created,
        "owned_by": "local",
        "status": entry.status,
        "context_length": entry.engine.context_length if entry.engine else None,
    }


def routes() -> list[Route]:
    """Return the routes, at `/v1` and, for clients given the server's bare `base_url`, without it."""
    return [
        route
        for prefix in ("/v1", "")
        for route in (
            Route(f"{prefix}/chat/completions", chat_completions, methods=["POST"]),
            *response_endpoints.routes(prefix),
            Route(f"{prefix}/models", list_models, methods=["GET"]),
            Route(f"{prefix}/models/{{id:path}}", retrieve_model, methods=["GET"]),
        )
    ]
