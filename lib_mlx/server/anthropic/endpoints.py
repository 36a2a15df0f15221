"""The routes of Anthropic's dialect."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.routing import Match, Route

from lib_mlx.generation import Failed
from lib_mlx.server.anthropic.messages import MessagesFold, encode
from lib_mlx.server.anthropic.messages_request import CountTokensRequest, MessagesRequest, to_generation, to_prompt
from lib_mlx.server.anthropic.models import model_info, models_page, read_query
from lib_mlx.server.http import JsonResponse, collect, read_json
from lib_mlx.server.openapi import EVENTS, described
from lib_mlx.server.sse import EventStreamResponse
from lib_mlx.server.state import request_id, state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

VERSION_HEADER = "anthropic-version"
"""Sent by every client of Anthropic's."""

_PING = encode([{"type": "ping"}])


@described(body=MessagesRequest, answers=("application/json", EVENTS))
async def create_message(request: Request) -> Response:
    """`POST /v1/messages`."""
    body = await read_json(request, MessagesRequest)
    session = await state_of(request).start(request, body.model, to_generation(body), user=body.caller)
    with session.closed_on_error():
        fold = MessagesFold(
            session.model,
            prompt_tokens=session.prompt_tokens,
            max_tokens=body.max_tokens,
            omits_thinking=body.omits_thinking,
            request_id=request_id(request),
        )
        if body.stream:
            return EventStreamResponse(
                session,
                encode(fold.opening()),
                lambda events: encode([made for _, event in events for made in fold.add(event)]),
                keep_alive=_PING,
            )
    for _, event in await collect(request, session):
        if isinstance(event, Failed):  # before the answer has begun, an error has a status of its own
            raise event.error
        fold.add(event)
    return JsonResponse(fold.message)


@described(body=CountTokensRequest)
async def count_tokens(request: Request) -> Response:
    """`POST /v1/messages/count_tokens`."""
    body = await read_json(request, CountTokensRequest)
    generation = await state_of(request).images.resolve(to_prompt(body))
    sessions = state_of(request).sessions
    async with sessions.lease(body.model) as lease:
        count = await sessions.work(lease.engine.count_prompt, generation)
    return JsonResponse({"input_tokens": count})


async def list_models(request: Request) -> Response:
    """`GET /v1/models`."""
    query = read_query(request.query_params)
    entries = await asyncio.to_thread(state_of(request).registry.entries)  # may look at the disk
    return JsonResponse(models_page(entries, query))


async def retrieve_model(request: Request) -> Response:
    """`GET /v1/models/{id}`."""
    entry = await asyncio.to_thread(state_of(request).registry.find, request.path_params["id"])
    return JsonResponse(model_info(entry))


class _VersionedRoute(Route):
    """A route that OpenAI's dialect has too: for requests with Anthropic's header only."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Tell whether the request is for this route."""
        if scope["type"] == "http" and VERSION_HEADER not in Headers(scope=scope):
            return Match.NONE, {}
        return super().matches(scope)


def routes() -> list[Route]:
    """Return the routes, under `/anthropic/v1` and, for clients given the server's bare `base_url`, under `/v1`."""
    return [
        route
        for prefix, shared in (("/anthropic/v1", Route), ("/v1", _VersionedRoute))
        for route in (
            Route(f"{prefix}/messages", create_message, methods=["POST"]),
            Route(f"{prefix}/messages/count_tokens", count_tokens, methods=["POST"]),
            shared(f"{prefix}/models", list_models, methods=["GET"]),
            shared(f"{prefix}/models/{{id:path}}", retrieve_model, methods=["GET"]),
        )
    ]
