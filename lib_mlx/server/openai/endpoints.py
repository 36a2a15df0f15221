"""The routes of OpenAI's dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from lib_mlx.generation import Failed
from lib_mlx.server.http import JsonResponse, collect, read_json
from lib_mlx.server.openai import (
    chat,
    chat_request,
    completions,
    completions_request,
    models,
    responses,
    responses_request,
)
from lib_mlx.server.openai.chat import encode
from lib_mlx.server.openai.embeddings import create_embeddings
from lib_mlx.server.sse import EventStreamResponse
from lib_mlx.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def chat_completions(request: Request) -> Response:
    """`POST /v1/chat/completions`."""
    body = await read_json(request, chat_request.ChatRequest)
    generation = chat_request.to_generation(body)
    session = await state_of(request).start(
        request, body.model, generation, choices=body.n or 1, profile=body.profile, user=body.caller
    )
    fold = chat.ChatFold(session.model, choices=body.n or 1, include_usage=body.include_usage)
    if body.stream:
        with session.closed_on_error():
            head = encode(fold.opening())
        return EventStreamResponse(session, head, lambda events: chat.render(fold, events))
    for index, event in await collect(request, session):
        fold.add(event, index)
    return JsonResponse(fold.body())


async def create_completion(request: Request) -> Response:
    """`POST /v1/completions`."""
    body = await read_json(request, completions_request.CompletionRequest)
    choices = body.n or 1
    wanted = completions_request.to_generation(body)
    session = await state_of(request).start(
        request, body.model, wanted, choices=choices, profile=body.profile, user=body.caller
    )
    with session.closed_on_error():
        # The tokenizer may be busy with somebody's long prompt: the loop does not wait for it.
        prompts = await state_of(request).sessions.work(completions_request.echoes, body, session, choices)
        fold = completions.CompletionFold(session.model, prompts, include_usage=body.include_usage)
    if body.stream:
        with session.closed_on_error():
            head = encode(fold.opening())
        return EventStreamResponse(session, head, lambda events: completions.render(fold, events))
    for index, event in await collect(request, session):
        fold.add(event, index)
    return JsonResponse(fold.body())


async def create_response(request: Request) -> Response:
    """`POST /v1/responses`."""
    body = await read_json(request, responses_request.ResponsesRequest)
    session = await state_of(request).start(
        request, body.model, responses_request.to_generation(body), profile=body.profile, user=body.caller
    )
    sampling = session.sampling
    fold = responses.ResponsesFold(body, session.model, temperature=sampling.temperature, top_p=sampling.top_p)
    if body.stream:
        with session.closed_on_error():
            head = responses.encode(fold.opening())
        return EventStreamResponse(session, head, lambda events: responses.render(fold, [event for _, event in events]))
    for _, event in await collect(request, session):
        if isinstance(event, Failed):  # before the answer has begun, an error has a status of its own
            raise event.error
        fold.add(event)
    return JsonResponse(fold.response)


def routes() -> list[Route]:
    """Return the routes, at `/v1` and, for clients given the server's bare `base_url`, without it."""
    return [
        route
        for prefix in ("/v1", "")
        for route in (
            Route(f"{prefix}/chat/completions", chat_completions, methods=["POST"]),
            Route(f"{prefix}/completions", create_completion, methods=["POST"]),
            Route(f"{prefix}/embeddings", create_embeddings, methods=["POST"]),
            Route(f"{prefix}/responses", create_response, methods=["POST"]),
            *models.routes(prefix),
        )
    ]
