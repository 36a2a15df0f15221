"""The routes of Ollama's dialect that use a model."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from starlette.routing import Route

from lib_mlx.errors import InvalidArgument, ModelBusy, UnsupportedFeature
from lib_mlx.server.embedding import embed_all
from lib_mlx.server.http import JsonResponse, collect, read_json
from lib_mlx.server.ollama import models
from lib_mlx.server.ollama.answers import MEDIA_TYPE, AnswerFold, line, render
from lib_mlx.server.ollama.common import GenerationFields, ModelRequest, bare_name, nanoseconds, refuse_thinking
from lib_mlx.server.ollama.requests import ChatBody, GenerateBody, chat_request, generate_request
from lib_mlx.server.openapi import described
from lib_mlx.server.sse import EventStreamResponse
from lib_mlx.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.generation import GenerationRequest
    from lib_mlx.server.state import ServerState


class EmbedBody(ModelRequest):
    """The body of `POST /api/embed`."""

    input: str | list[str]
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class EmbeddingsBody(ModelRequest):
    """The body of `POST /api/embeddings`, the older endpoint for one text."""

    prompt: str


@described(body=GenerateBody, answers=("application/json", MEDIA_TYPE))
async def generate(request: Request) -> Response:
    """`POST /api/generate`: continue a prompt; without one, load the model (or unload it, if `keep_alive` is 0)."""
    body = await read_json(request, GenerateBody)
    generation = generate_request(body)
    if not body.prompt:
        return await _load_only(request, body, chat=False)
    return await _answer(request, body, generation, chat=False)


@described(body=ChatBody, answers=("application/json", MEDIA_TYPE))
async def chat(request: Request) -> Response:
    """`POST /api/chat`: answer a conversation; without messages, load the model (or unload it)."""
    body = await read_json(request, ChatBody)
    generation = chat_request(body)
    if not body.messages:
        return await _load_only(request, body, chat=True)
    return await _answer(request, body, generation, chat=True)


async def _answer(request: Request, body: GenerationFields, generation: GenerationRequest, *, chat: bool) -> Response:
    begun = time.perf_counter()
    state, name = state_of(request), bare_name(body.model)
    session = await state.start(request, name, generation, keep_alive_s=body.keep_alive)
    with session.closed_on_error():
        if body.think and "thinking" not in session.capabilities:
            raise refuse_thinking(body.model)
        _check_context(body, session.context_length)
    fold = AnswerFold(body.model, chat=chat, load_s=time.perf_counter() - begun)
    if body.streamed:
        return EventStreamResponse(
            session, b"", lambda events: render(fold, events), media_type=MEDIA_TYPE, keep_alive=b""
        )
    for _, event in await collect(request, session):
        fold.add(event)
    return JsonResponse(fold.body())


def _check_context(body: ModelRequest, context_length: int) -> None:
    wanted = body.settings.num_ctx
    if wanted is not None and wanted > context_length:
        raise UnsupportedFeature(
            f"The model's context holds {context_length} tokens, not {wanted}.",
            hint="Ask for no more.",
            param="options.num_ctx",
        )


async def _load_only(request: Request, body: GenerationFields, *, chat: bool) -> Response:
    state, name = state_of(request), bare_name(body.model)
    fold = AnswerFold(body.model, chat=chat)
    if body.keep_alive == 0:
        await _unload(state, name)
        answer = fold.empty("unload")
    else:
        async with state.sessions.lease(name, tends=True) as lease:
            lease.keep_alive_s = body.keep_alive
        answer = fold.empty("load")
    if body.streamed:
        return JsonLines(answer)
    return JsonResponse(answer)


async def _unload(state: ServerState, name: str) -> None:
    """Unload a model of the server; its host's own stays, as does one that is busy."""
    with contextlib.suppress(InvalidArgument, ModelBusy):
        await asyncio.to_thread(state.registry.unload, name)


class JsonLines(JsonResponse):
    """A stream of one line."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        """Return `content` as a line."""
        return line(content)


@described(body=EmbedBody)
async def embed(request: Request) -> Response:
    """`POST /api/embed`."""
    body = await read_json(request, EmbedBody)
    body.settings.check()
    begun = time.perf_counter()
    texts = [body.input] if isinstance(body.input, str) else body.input
    _, vectors, tokens = await embed_all(
        request,
        state_of(request),
        bare_name(body.model),
        texts,
        body.dimensions,
        keep_alive_s=body.keep_alive,
        truncate=bool(body.truncate),
    )
    taken = nanoseconds(time.perf_counter() - begun)
    return JsonResponse(
        {
            "model": body.model,
            "embeddings": vectors,
            "total_duration": taken,
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
    )


@described(body=EmbeddingsBody)
async def embeddings(request: Request) -> Response:
    """`POST /api/embeddings`."""
    body = await read_json(request, EmbeddingsBody)
    body.settings.check()
    _, (vector,), _ = await embed_all(
        request, state_of(request), bare_name(body.model), [body.prompt], keep_alive_s=body.keep_alive
    )
    return JsonResponse({"embedding": vector})


async def unsupported(request: Request) -> Response:
    """Refuse what changes the models on this machine; `lib-mlx pull` and its kin do that."""
    raise UnsupportedFeature(
        f"{request.url.path} is not offered: a server does not change which models there are.",
        hint="Use lib-mlx pull, rm and list.",
    )


def routes() -> list[Route]:
    """Return the routes below `/api`."""
    return [
        Route("/api/generate", generate, methods=["POST"]),
        Route("/api/chat", chat, methods=["POST"]),
        Route("/api/embed", embed, methods=["POST"]),
        Route("/api/embeddings", embeddings, methods=["POST"]),
        *models.routes(),
        Route("/api/pull", unsupported, methods=["POST"]),
        Route("/api/push", unsupported, methods=["POST"]),
        Route("/api/create", unsupported, methods=["POST"]),
        Route("/api/copy", unsupported, methods=["POST"]),
        Route("/api/delete", unsupported, methods=["DELETE"]),
        Route("/api/blobs/{digest}", unsupported, methods=["POST", "HEAD"]),
    ]
