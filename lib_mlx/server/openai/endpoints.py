"""The routes of OpenAI's dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from lib_mlx.server.http import JsonResponse, collect, read_json
from lib_mlx.server.openai import chat, chat_request, completions, completions_request, models, response_endpoints
from lib_mlx.server.openai.chunks import encode, render
from lib_mlx.server.openai.embeddings import create_embeddings
from lib_mlx.server.openapi import EVENTS, described
from lib_mlx.server.sse import EventStreamResponse
from lib_mlx.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.server.openai.chunks import Fold
    from lib_mlx.server.session import Session


@described(body=chat_request.ChatRequest, answers=("application/json", EVENTS))
async def chat_completions(request: Request) -> Response:
    """`POST /v1/chat/completions`."""
    body = await read_json(request, chat_request.ChatRequest)
    generation = chat_request.to_generation(body)
    session = await state_of(request).start(
        request,
        body.model,
        generation,
        choices=body.n or 1,
        profile=body.profile,
        keep_alive_s=body.keep_alive,
        user=body.caller,
    )
    fold = chat.ChatFold(session.model, choices=body.n or 1, include_usage=body.include_usage)
    return await _answer(request, session, fold, stream=bool(body.stream))


@described(body=completions_request.CompletionRequest, answers=("application/json", EVENTS))
async def create_completion(request: Request) -> Response:
    """`POST /v1/completions`."""
    body = await read_json(request, completions_request.CompletionRequest)
    choices = body.n or 1
    wanted = completions_request.to_generation(body)
    session = await state_of(request).start(
        request,
        body.model,
        wanted,
        choices=choices,
        profile=body.profile,
        keep_alive_s=body.keep_alive,
        user=body.caller,
    )
    with session.closed_on_error():
        # The tokenizer may be busy with somebody's long prompt: the loop does not wait for it.
        prompts = await state_of(request).sessions.work(completions_request.echoes, body, session, choices)
        fold = completions.CompletionFold(session.model, prompts, include_usage=body.include_usage)
    return await _answer(request, session, fold, stream=bool(body.stream))


async def _answer(request: Request, session: Session, fold: Fold, *, stream: bool) -> Response:
    if stream:
        with session.closed_on_error():
            head = encode(fold.opening())
        return EventStreamResponse(session, head, lambda events: render(fold, events))
    for index, event in await collect(request, session):
        fold.add(event, index)
    return JsonResponse(fold.body())


def routes() -> list[Route]:
    """Return the routes, at `/v1` and, for clients given the server's bare `base_url`, without it."""
    return [
        route
        for prefix in ("/v1", "")
        for route in (
            Route(f"{prefix}/chat/completions", chat_completions, methods=["POST"]),
            Route(f"{prefix}/completions", create_completion, methods=["POST"]),
            Route(f"{prefix}/embeddings", create_embeddings, methods=["POST"]),
            *response_endpoints.routes(prefix),
            *models.routes(prefix),
        )
    ]
