"""The routes of the Responses API."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from starlette.routing import Route

from lib_mlx.errors import ContextLengthExceeded, InvalidArgument, LibMlxError, UnsupportedFeature
from lib_mlx.generation import Failed
from lib_mlx.server.fields import refuse_unless
from lib_mlx.server.http import JsonResponse, QueryModel, collect, read_json, read_query
from lib_mlx.server.openai.background import BackgroundRun
from lib_mlx.server.openai.common import as_list
from lib_mlx.server.openai.response_items import ItemReader
from lib_mlx.server.openai.response_object import new_response
from lib_mlx.server.openai.response_run import ResponseRun
from lib_mlx.server.openai.responses import ResponsesFold
from lib_mlx.server.openai.responses_request import (
    ENCRYPTED,
    LOGPROBS,
    InputTokensRequest,
    ResponsesRequest,
    refuse_include,
    refuse_obfuscation,
    to_generation,
    to_prompt,
)
from lib_mlx.server.openai.truncation import fitted
from lib_mlx.server.openapi import EVENTS, described
from lib_mlx.server.sse import EventStreamResponse
from lib_mlx.server.state import state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from lib_mlx.generation import GenerationRequest
    from lib_mlx.server.openai.response_items import Item
    from lib_mlx.server.openai.response_store import ResponseStore
    from lib_mlx.server.openai.responses_request import PromptFields
    from lib_mlx.server.session import Session
    from lib_mlx.server.state import ServerState

Include = Annotated[list[str] | None, BeforeValidator(as_list)]


class RetrieveQuery(QueryModel):
    """The query of `GET /v1/responses/{id}`."""

    stream: bool | None = None
    starting_after: Annotated[int, Field(ge=0)] | None = None
    include: Include = None
    include_obfuscation: bool | None = None


class InputItemsQuery(QueryModel):
    """The query of `GET /v1/responses/{id}/input_items`."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None
    include: Include = None


class Conversation:
    """What a request is about: the responses it continues, and its own input."""

    def __init__(self, body: PromptFields, store: ResponseStore) -> None:
        self.previous = store.previous(body.previous_response_id)
        before = [*self.previous.history(), *self.previous.items] if self.previous else []
        reader = ItemReader(store.item, store.seal.open, [item["id"] for item in before])
        self.input = reader.read(body.input)
        self.items: list[Item] = [*before, *self.input]


@described(body=ResponsesRequest, answers=("application/json", EVENTS))
async def create_response(request: Request) -> Response:
    """`POST /v1/responses`."""
    body = await read_json(request, ResponsesRequest)
    state = state_of(request)
    conversation = Conversation(body, state.response_store)
    whole = to_generation(body, conversation.items)
    if body.background:
        return await _in_background(request, body, conversation, whole)
    with _prompts_named_input():
        session = await _started(request, body, conversation, whole)
    with session.closed_on_error():
        sampling = session.sampling
        response = new_response(body, session.model, temperature=sampling.temperature, top_p=sampling.top_p)
        run = _run(state, body, conversation, response)
        head = run.opening()
    if body.stream:
        return EventStreamResponse(session, head, lambda events: run.take([event for _, event in events]))
    events = [event for _, event in await collect(request, session)]
    if isinstance(events[-1], Failed):  # before the answer has begun, an error has a status of its own
        raise events[-1].error
    run.take(events)
    return JsonResponse(response)


async def _in_background(
    request: Request, body: ResponsesRequest, conversation: Conversation, whole: GenerationRequest
) -> Response:
    """Answer at once; only a model that is ready is asked first whether it takes the request."""
    state = state_of(request)
    entry = await asyncio.to_thread(state.registry.find, body.model)  # may look at the disk
    starting = asyncio.create_task(_started(request, body, conversation, whole))
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    with contextlib.ExitStack() as stack:
        if entry.loaded:
            with _prompts_named_input():
                session = await starting
            stack.enter_context(session.closed_on_error())
            temperature, top_p = session.sampling.temperature, session.sampling.top_p
        response = new_response(body, entry.id, temperature=temperature, top_p=top_p)
        run = _run(state, body, conversation, response)
        if run.stored is None:
            raise AssertionError  # to_generation() refuses
        run.opening()
        state.response_store.add(run.stored)
        run.stored.run = BackgroundRun(run, starting)
    return run.stored.log.response() if run.stored.log else JsonResponse(response)


def _run(
    state: ServerState, body: ResponsesRequest, conversation: Conversation, response: dict[str, Any]
) -> ResponseRun:
    store = state.response_store
    fold = ResponsesFold(response, store.seal.seal if body.includes(ENCRYPTED) else None)
    return ResponseRun(fold, store, conversation.input, conversation.previous, streamed=body.stream is True)


async def _started(
    request: Request, body: ResponsesRequest, conversation: Conversation, whole: GenerationRequest
) -> Session:
    """Start generating, with what fits of the conversation if it may be truncated."""
    state, generation = state_of(request), whole
    if body.truncation == "auto":
        generation = await _fitted(state, body, conversation, lambda items: to_generation(body, items))
    return await state.start(
        request, body.model, generation, profile=body.profile, keep_alive_s=body.keep_alive, user=body.caller
    )


async def _fitted(
    state: ServerState,
    body: PromptFields,
    conversation: Conversation,
    build: Callable[[Sequence[Item]], GenerationRequest],
) -> GenerationRequest:
    async with state.sessions.lease(body.model) as lease:

        async def fits(items: Sequence[Item]) -> bool:
            try:
                await state.sessions.work(lease.engine.prepare, await state.images.resolve(build(items)))
            except ContextLengthExceeded:
                return False
            return True

        return build(await fitted(conversation.items, fits))


@contextlib.contextmanager
def _prompts_named_input() -> Iterator[None]:
    """Have errors name the field that this API has for what the engine knows as messages."""
    try:
        yield
    except LibMlxError as error:
        if error.param == "messages":
            error.param = "input"
        raise


@described(body=InputTokensRequest)
async def count_input_tokens(request: Request) -> Response:
    """`POST /v1/responses/input_tokens`."""
    body = await read_json(request, InputTokensRequest)
    state = state_of(request)
    conversation = Conversation(body, state.response_store)
    prompt = to_prompt(body, conversation.items)
    with _prompts_named_input():
        if body.truncation == "auto":
            prompt = await _fitted(state, body, conversation, lambda items: to_prompt(body, items))
        async with state.sessions.lease(body.model) as lease:
            prepared = await state.sessions.work(lease.engine.prepare, await state.images.resolve(prompt))
    return JsonResponse({"object": "response.input_tokens", "input_tokens": len(prepared.prompt)})


@described(answers=("application/json", EVENTS), query=RetrieveQuery)
async def retrieve_response(request: Request) -> Response:
    """`GET /v1/responses/{id}`: as it is now, or its events again."""
    stored = state_of(request).response_store.get(request.path_params["id"])
    query = read_query(request, RetrieveQuery)
    refuse_obfuscation("include_obfuscation", query.include_obfuscation)
    if not query.stream:
        if query.starting_after is not None:
            raise InvalidArgument(
                "'starting_after' is only allowed with 'stream=true'.", hint="Remove it.", param="starting_after"
            )
        output = stored.response["output"]
        if LOGPROBS in (query.include or ()) and any(_lacks_logprobs(item) for item in output):
            raise UnsupportedFeature(
                "The probabilities of this answer's tokens were not kept.",
                hint="Ask for them when the response is created.",
                param="include",
            )
        return JsonResponse({**stored.response, "output": _including(request, output, query.include)})
    if stored.log is None:
        raise UnsupportedFeature(
            f"The response {stored.id!r} was not created with 'stream': true: it has no events.",
            hint="Retrieve it without 'stream'.",
            param="stream",
        )
    refuse_unless("include", query.include, [], why="events come again as they were")
    return stored.log.response(0 if query.starting_after is None else query.starting_after + 1)


async def delete_response(request: Request) -> Response:
    """`DELETE /v1/responses/{id}`: forget a response; one that is being made is cancelled."""
    stored = state_of(request).response_store.get(request.path_params["id"])
    if stored.run is not None:
        await stored.run.cancel()
    state_of(request).response_store.remove(stored)
    return JsonResponse({"id": stored.id, "object": "response", "deleted": True})


async def cancel_response(request: Request) -> Response:
    """`POST /v1/responses/{id}/cancel`: one that is finished stays as it is."""
    stored = state_of(request).response_store.get(request.path_params["id"])
    if stored.run is None:
        raise InvalidArgument(
            f"The response {stored.id!r} was not created with 'background': true.",
            hint="Close the connection to cancel a response that is waited for.",
        )
    await stored.run.cancel()
    return JsonResponse(stored.response)


@described(query=InputItemsQuery)
async def list_input_items(request: Request) -> Response:
    """`GET /v1/responses/{id}/input_items`: all that the response was made from, the chain before it included."""
    stored = state_of(request).response_store.get(request.path_params["id"])
    query = read_query(request, InputItemsQuery)
    page, has_more = _page([*stored.history(), *stored.input], query)
    return JsonResponse(
        {
            "object": "list",
            "data": _including(request, page, query.include),
            "first_id": page[0]["id"] if page else "",
            "last_id": page[-1]["id"] if page else "",
            "has_more": has_more,
        }
    )


def _page(items: list[Item], query: InputItemsQuery) -> tuple[list[Item], bool]:
    """Return a page of `items` and whether there are more beyond it."""
    ordered = items[::-1] if query.order == "desc" else items
    begin = 0 if query.after is None else _place(ordered, query.after, "after") + 1
    end = len(ordered) if query.before is None else _place(ordered, query.before, "before")
    window = ordered[begin:end]
    backwards = query.before is not None and query.after is None  # the page that ends there
    return window[-query.limit :] if backwards else window[: query.limit], len(window) > query.limit


def _place(items: Sequence[Item], item_id: str, param: str) -> int:
    for index, item in enumerate(items):
        if item["id"] == item_id:
            return index
    raise InvalidArgument(f"The response has no input item {item_id!r}.", param=param)


def _including(request: Request, items: Sequence[Item], include: Sequence[str] | None) -> list[Item]:
    """Return `items` with what a retrieval asks for beyond what they were made with."""
    refuse_include(include)
    if ENCRYPTED not in (include or ()):
        return list(items)
    seal = state_of(request).response_store.seal.seal
    return [_sealed(item, seal) if item["type"] == "reasoning" else item for item in items]


def _lacks_logprobs(item: Item) -> bool:
    parts = item["content"] if item["type"] == "message" and item["status"] != "in_progress" else ()
    return any(part["type"] == "output_text" and part["text"] and not part["logprobs"] for part in parts)


def _sealed(item: Item, seal: Callable[[str], str]) -> Item:
    text = "".join(part["text"] for part in item["content"])
    return {**item, "encrypted_content": seal(text)} if text else item


def routes(prefix: str) -> list[Route]:
    """Return the routes below `prefix`."""
    base = f"{prefix}/responses"
    return [
        Route(base, create_response, methods=["POST"]),
        Route(f"{base}/input_tokens", count_input_tokens, methods=["POST"]),
        Route(f"{base}/{{id}}", retrieve_response, methods=["GET"]),
        Route(f"{base}/{{id}}", delete_response, methods=["DELETE"]),
        Route(f"{base}/{{id}}/cancel", cancel_response, methods=["POST"]),
        Route(f"{base}/{{id}}/input_items", list_input_items, methods=["GET"]),
    ]
