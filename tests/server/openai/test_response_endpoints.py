"""Stored responses through OpenAI's own client: continued, retrieved, listed, counted, deleted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_mlx.server.openai.response_endpoints import InputItemsQuery, _page
from tests.checkpoints import SCRIPTS
from tests.server.openai.streams import check_stream, events_of, stream_of, without_ids
from tests.server.specs import check
from tests.server.test_server import eventually, scheduler_depth

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    import lib_mlx

TOOLS: list[Any] = [
    {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
]


def create(http: httpx2.Client, **body: Any) -> dict[str, Any]:
    """Create a response over plain HTTP."""
    answer = http.post("/v1/responses", json={"temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    check("openresponses", "ResponseResource", whole)
    return whole


@contextlib.contextmanager
def refused(
    code: str, param: str | None = None, kind: type[openai.APIStatusError] = openai.BadRequestError
) -> Iterator[None]:
    """Demand that the block is refused."""
    with pytest.raises(kind) as caught:
        yield
    assert (caught.value.code, caught.value.param) == (code, param)


# Continuing


def test_a_conversation_by_id_is_the_conversation_sent_whole(http: httpx2.Client) -> None:
    """What is continued is prompted with all items of the chain, and without its instructions."""
    first = create(http, input="think", instructions="Be brief. " * 20)
    second = create(http, input="hello", previous_response_id=first["id"])
    third = create(http, input="unicode", previous_response_id=second["id"], instructions="Now.")
    assert third["previous_response_id"] == second["id"]
    assert (third["instructions"], third["store"]) == ("Now.", True)
    sent = [
        {"role": "user", "content": "think"},
        *first["output"],
        {"role": "user", "content": "hello"},
        *second["output"],
        {"role": "user", "content": "unicode"},
    ]
    whole = create(http, input=sent, instructions="Now.", store=False)
    assert whole["output"][0]["content"] == third["output"][0]["content"]
    assert whole["usage"]["input_tokens"] == third["usage"]["input_tokens"]
    alone = create(http, input="hello", store=False)
    assert alone["usage"]["input_tokens"] < second["usage"]["input_tokens"] < first["usage"]["input_tokens"]


def test_a_tool_conversation_by_id(client: openai.OpenAI) -> None:
    """Only the tool's output is sent; the call is known. Two answers may continue the same response."""
    first = client.responses.create(model="crafted", input="think_tool", tools=TOOLS)
    call = first.output[-1]
    assert call.type == "function_call"
    for output in ("sunny", [{"type": "input_text", "text": "sunny"}]):
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": output}
        answer = client.responses.create(model="crafted", input=[result], previous_response_id=first.id, tools=TOOLS)
        assert answer.output_text == SCRIPTS["after"].text()


def test_a_response_that_was_streamed_can_be_continued_at_once(client: openai.OpenAI) -> None:
    """It is kept before its end is told."""
    with client.responses.stream(model="crafted", input="hello") as stream:
        final = stream.get_final_response()
    again = client.responses.create(model="crafted", input="hello", previous_response_id=final.id)
    assert again.usage is not None
    assert final.usage is not None
    assert again.usage.input_tokens > final.usage.input_tokens


def test_nothing_new_to_say(http: httpx2.Client) -> None:
    """A response can be continued without input."""
    first = create(http, input="hello")
    assert create(http, previous_response_id=first["id"])["status"] == "completed"


def test_references_to_items(client: openai.OpenAI) -> None:
    """An item of a stored response stands for itself."""
    first = client.responses.create(model="crafted", input="tool", tools=TOOLS)
    (call,) = first.output
    assert call.type == "function_call"
    assert call.id is not None
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    answer = client.responses.create(
        model="crafted",
        input=[{"role": "user", "content": "tool"}, {"type": "item_reference", "id": call.id}, result],
        tools=TOOLS,
    )
    assert answer.output_text == SCRIPTS["after"].text()
    client.responses.delete(first.id)
    client.responses.delete(answer.id)
    with refused("invalid_argument", "input.0.id"):
        client.responses.create(model="crafted", input=[{"type": "item_reference", "id": call.id}])


def test_what_is_not_stored_is_not_found(client: openai.OpenAI) -> None:
    """Neither to be continued nor retrieved."""
    gone = client.responses.create(model="crafted", input="hello", store=False)
    assert gone.to_dict()["store"] is False
    with refused("previous_response_not_found", "previous_response_id"):
        client.responses.create(model="crafted", input="hello", previous_response_id=gone.id)
    for use in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with refused("not_found", kind=openai.NotFoundError):
            use(gone.id)
    with refused("not_found", kind=openai.NotFoundError):
        client.responses.input_items.list(gone.id)


def test_a_stream_that_was_left_is_not_stored(client: openai.OpenAI, crafted_model: lib_mlx.Model) -> None:
    """Only the background goes on without a client."""
    with client.responses.create(model="crafted", input="loop", stream=True) as stream:
        first = next(iter(stream))
    assert first.type == "response.created"
    eventually(lambda: scheduler_depth(crafted_model) == 0)
    with refused("not_found", kind=openai.NotFoundError):
        client.responses.retrieve(first.response.id)


# Retrieving


@pytest.mark.parametrize("script", ["hello", "think_tool", "broken_tool", "empty", "unicode"])
def test_what_is_retrieved_is_what_was_answered(http: httpx2.Client, script: str) -> None:
    """The body, the stream's last event and the stored response are one; so are the events, from any place on."""
    body = {"input": script, "tools": TOOLS}
    whole = create(http, **body)
    assert http.get(f"/v1/responses/{whole['id']}").json() == whole
    events = stream_of(http, {**body, "temperature": 0})
    final = events[-1]["response"]
    path = f"/v1/responses/{final['id']}"
    assert http.get(path).json() == final
    assert without_ids(final) == without_ids(whole)
    assert events_of(http.get(path, params={"stream": "true"})) == events
    for after in (0, 3, len(events) - 2):
        assert events_of(http.get(path, params={"stream": True, "starting_after": after})) == events[after + 1 :]
    rest = http.get(path, params={"stream": "true", "starting_after": len(events) + 5})
    assert rest.text == "data: [DONE]\n\n"


def test_the_client_replays_a_stream(client: openai.OpenAI) -> None:
    """OpenAI's helper takes a stream up again by the response's id."""
    with client.responses.stream(model="crafted", input="think") as stream:
        told = list(stream)
        final = stream.get_final_response()
    with client.responses.stream(response_id=final.id, starting_after=4) as again:
        assert [event.sequence_number for event in again] == [event.sequence_number for event in told[5:]]
        assert again.get_final_response().output_text == final.output_text


def test_failures_are_retrieved_too(http: httpx2.Client) -> None:
    """An incomplete response is kept as it is."""
    cut = create(http, input="loop", max_output_tokens=3)
    assert cut["status"] == "incomplete"
    assert http.get(f"/v1/responses/{cut['id']}").json() == cut


def test_including_more(client: openai.OpenAI) -> None:
    """Reasoning can be had sealed afterwards; probabilities only if they were asked for at first."""
    include: list[Any] = ["reasoning.encrypted_content"]
    plain = client.responses.create(model="crafted", input="think")
    sealed = client.responses.retrieve(plain.id, include=include)
    assert sealed.to_dict()["output"][0]["encrypted_content"]  # type: ignore[index]
    assert "encrypted_content" not in client.responses.retrieve(plain.id).to_dict()["output"][0]  # type: ignore[index]
    likely: list[Any] = ["message.output_text.logprobs"]
    with refused("unsupported_feature", "include"):
        client.responses.retrieve(plain.id, include=likely)
    asked = client.responses.create(model="crafted", input="think", include=likely)
    assert client.responses.retrieve(asked.id, include=likely).output[1] == asked.output[1]


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("starting_after=1", "invalid_argument", "starting_after"),
        ("stream=true", "unsupported_feature", "stream"),
        ("stream=perhaps", "invalid_argument", "stream"),
        ("stream=true&stream=false", "invalid_argument", "stream"),
        ("starting_after=-1&stream=true", "invalid_argument", "starting_after"),
        ("include_obfuscation=true", "unsupported_feature", "include_obfuscation"),
        ("include=web_search_call.results", "unsupported_feature", "include"),
        ("include[]=reasoning.encrypted_content&include[]=x", "unsupported_feature", "include"),
        ("colour=red", "invalid_argument", "colour"),
    ],
)
def test_refused_queries(http: httpx2.Client, query: str, code: str, param: str) -> None:
    """What cannot be honoured is named."""
    path = f"/v1/responses/{create(http, input='hello')['id']}"
    answer = http.get(f"{path}?{query}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


def test_a_replay_includes_nothing_else(http: httpx2.Client) -> None:
    """Events come as they were, or not at all."""
    made = stream_of(http, {"input": "think"})[-1]["response"]
    answer = http.get(f"/v1/responses/{made['id']}?stream=true&include=reasoning.encrypted_content")
    assert answer.json()["error"]["param"] == "include"


# Deleting, cancelling


def test_deleting(client: openai.OpenAI, http: httpx2.Client) -> None:
    """What was deleted is gone; what continues it still knows the conversation."""
    first = create(http, input="hello")
    second = create(http, input="hello", previous_response_id=first["id"])
    answer = http.delete(f"/v1/responses/{first['id']}")
    assert answer.json() == {"id": first["id"], "object": "response", "deleted": True}
    with refused("not_found", kind=openai.NotFoundError):
        client.responses.retrieve(first["id"])
    third = create(http, input="hello", previous_response_id=second["id"])
    assert third["usage"]["input_tokens"] > second["usage"]["input_tokens"]
    client.responses.delete(second["id"])


def test_only_the_background_is_cancelled(client: openai.OpenAI) -> None:
    """A response that was waited for is not."""
    done = client.responses.create(model="crafted", input="hello")
    with refused("invalid_argument"):
        client.responses.cancel(done.id)


def test_methods(http: httpx2.Client) -> None:
    """What the API does not have is answered as such."""
    put = http.put("/v1/responses/resp_1", json={})
    assert (put.status_code, set(put.headers["allow"].split(", "))) == (405, {"DELETE", "GET", "HEAD"})
    assert http.get("/v1/responses").status_code == 405
    assert http.get("/v1/responses/input_tokens").status_code == 404


# Input items


def test_input_items(client: openai.OpenAI, http: httpx2.Client) -> None:
    """All that a response was made from, newest first unless told otherwise, page by page."""
    first = create(http, input="think_tool", tools=TOOLS)
    call = first["output"][-1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    second = create(http, input=[result, {"role": "user", "content": "hello"}], previous_response_id=first["id"])
    listed = http.get(f"/v1/responses/{second['id']}/input_items", params={"order": "asc"}).json()
    check("openai", "ResponseItemList", listed)
    kinds = [item["type"] for item in listed["data"]]
    assert kinds == ["message", "reasoning", "message", "function_call", "function_call_output", "message"]
    assert listed["data"][1:4] == first["output"]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (
        listed["data"][0]["id"],
        listed["data"][-1]["id"],
        False,
    )
    paged = client.responses.input_items.list(second["id"], limit=2)
    assert [item.id for item in paged] == [item["id"] for item in reversed(listed["data"])]
    sealed = client.responses.input_items.list(second["id"], include=["reasoning.encrypted_content"], limit=100)
    assert [item.type for item in sealed if getattr(item, "encrypted_content", None)] == ["reasoning"]


def test_pages() -> None:
    """Cursors exclude what they name; before a place comes the page that ends there."""
    items = [{"id": str(number)} for number in range(10)]

    def ids(**query: Any) -> tuple[str, bool]:
        page, more = _page(items, InputItemsQuery(**query))
        return "".join(item["id"] for item in page), more

    assert ids() == ("9876543210", False)
    assert ids(order="asc", limit=3) == ("012", True)
    assert ids(order="asc", limit=3, after="6") == ("789", False)
    assert ids(order="asc", limit=3, before="6") == ("345", True)
    assert ids(order="asc", limit=3, before="2") == ("01", False)
    assert ids(order="asc", limit=3, after="1", before="4") == ("23", False)
    assert ids(limit=3, after="6") == ("543", True)
    assert ids(order="asc", after="9") == ("", False)


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order"), ("after=x", "after"), ("before=x", "before"),
     ("include=x", "include"), ("page=2", "page")],
)  # fmt: skip
def test_refused_pages(http: httpx2.Client, query: str, param: str) -> None:
    """Limits, orders and cursors are checked."""
    answer = http.get(f"/v1/responses/{create(http, input='hello')['id']}/input_items?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


# Counting


def test_counting_input_tokens(client: openai.OpenAI, http: httpx2.Client) -> None:
    """The count is that of the response's usage, whatever the prompt is made of."""
    first = create(http, input="hello")
    bodies: list[dict[str, Any]] = [
        {"input": "hello"},
        {"input": "hello", "instructions": "Be brief."},
        {"input": [{"role": "user", "content": "tool"}], "tools": TOOLS, "tool_choice": "required"},
        {"input": "hello", "previous_response_id": first["id"], "truncation": "auto"},
        {"input": "hello", "text": {"format": {"type": "json_object"}}, "reasoning": {"effort": "none"}},
    ]
    for body in bodies:
        counted = client.responses.input_tokens.count(model="crafted", **body)
        assert counted.object == "response.input_tokens"
        used = create(http, **body, max_output_tokens=1)["usage"]["input_tokens"]
        assert counted.input_tokens == used


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "invalid_argument", "input"),
        ({"input": "x", "personality": "friendly"}, "unsupported_feature", "personality"),
        ({"input": "x", "conversation": "conv_1"}, "unsupported_feature", "conversation"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_not_found", "previous_response_id"),
        ({"input": "x", "stream": True}, "invalid_argument", "stream"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "unsupported_feature", "text.format"),
        ({"input": "hello " * 5000}, "context_length_exceeded", "input"),
    ],
)
def test_refused_counts(http: httpx2.Client, fields: dict[str, Any], code: str, param: str) -> None:
    """What has no part in a prompt, or cannot be honoured, is named."""
    answer = http.post("/v1/responses/input_tokens", json=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


# Anything at all

VALUE = (
    st.none() | st.booleans() | st.integers(-2, 30) | st.text(max_size=4) | st.lists(st.text(max_size=2), max_size=2)
)
NAMES = ["stream", "starting_after", "include", "include[]", "include_obfuscation", "limit", "order", "after", "before"]
FIELDS = st.dictionaries(
    st.sampled_from(
        ["previous_response_id", "store", "background", "include", "top_logprobs", "truncation", "tool_choice",
         "metadata", "reasoning", "text", "stream_options", "max_tool_calls", "conversation", "input", "instructions"]
    ),
    VALUE
    | st.dictionaries(st.sampled_from(["type", "effort", "format", "tools", "mode", "name", "id"]), VALUE, max_size=3),
    max_size=4,
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=FIELDS, names=st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=5)), max_size=3))
def test_anything_is_answered(http: httpx2.Client, fields: dict[str, Any], names: list[tuple[str, str]]) -> None:
    """Any fields and any query are honoured or a client's error, never the server's."""
    created = http.post("/v1/responses", json={"input": "hello", "max_output_tokens": 4, **fields})
    assert created.status_code in {200, 400, 404}, created.text
    key = created.json()["id"] if created.status_code == 200 else "resp_1"
    for path in (f"/v1/responses/{key}", f"/v1/responses/{key}/input_items"):
        answer = http.get(path, params=tuple(names))
        assert answer.status_code in {200, 400, 404}, answer.text
    count = http.post("/v1/responses/input_tokens", json={"input": "hello", **fields})
    assert count.status_code in {200, 400}, count.text


def test_the_asynchronous_client_uses_the_store(server: Any) -> None:
    """All verbs through the asynchronous client."""

    async def scenario() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="unused", max_retries=0) as client:
            first = await client.responses.create(model="crafted", input="hello")
            assert (await client.responses.retrieve(first.id)).output_text == first.output_text
            assert [item.type async for item in client.responses.input_items.list(first.id)] == ["message"]
            await client.responses.delete(first.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(first.id)

    asyncio.run(scenario())


def test_a_stream_of_a_chained_response_is_valid(http: httpx2.Client) -> None:
    """It names what it continues in every snapshot."""
    first = create(http, input="hello")
    events = stream_of(http, {"input": "think", "previous_response_id": first["id"]})
    check_stream(events)
    told = {event["response"]["previous_response_id"] for event in events if "response" in event}
    assert told == {first["id"]}
