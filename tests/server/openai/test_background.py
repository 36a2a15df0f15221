"""Responses in the background: they outlive their clients, and end with the server."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

import lib_mlx
from lib_mlx.config import ServerConfig
from lib_mlx.registry import ModelSpec, Registry
from lib_mlx.runtime import get_runtime
from lib_mlx.server.listener import Listener
from tests.checkpoints import SCRIPTS
from tests.server.openai.streams import check_stream, events_of, stream_of, without_ids
from tests.server.specs import check
from tests.server.test_server import eventually, scheduler_depth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG: dict[str, Any] = {"model": "crafted", "input": "loop", "background": True, "max_output_tokens": 3000}
RUNNING = {"queued", "in_progress"}


def finished(client: openai.OpenAI, response_id: str) -> openai.types.responses.Response:
    """Poll until a response is finished."""
    until = time.monotonic() + 20
    while (found := client.responses.retrieve(response_id)).status in RUNNING:
        check("openresponses", "ResponseResource", found.to_dict())
        assert time.monotonic() < until, "it never ended"
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("script", ["hello", "think", "long", "empty"])
def test_polling(client: openai.OpenAI, http: httpx2.Client, script: str) -> None:
    """The answer comes at once, queued; polled to its end it is what would have been waited for."""
    answer = client.responses.create(model="crafted", input=script, temperature=0, background=True)
    assert (answer.status, answer.background, answer.output, answer.usage) == ("queued", True, [], None)
    found = finished(client, answer.id)
    waited = http.post("/v1/responses", json={"model": "crafted", "input": script, "temperature": 0}).json()
    assert without_ids(found.to_dict()) == {**without_ids(waited), "background": True}
    continued = client.responses.create(model="crafted", input="hello", previous_response_id=answer.id)
    assert continued.output_text == SCRIPTS["hello"].text()


def test_streaming(http: httpx2.Client, client: openai.OpenAI) -> None:
    """A stream of the background says that it is queued, and ends like any other."""
    events = stream_of(http, {"input": "think", "temperature": 0, "background": True})
    check_stream(events)
    assert [event["type"] for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    final = events[-1]["response"]
    assert http.get(f"/v1/responses/{final['id']}").json() == final
    with client.responses.stream(model="crafted", input="think", background=True) as stream:
        assert stream.get_final_response().output_text == "The answer is 42"


def test_it_outlives_its_client(client: openai.OpenAI, http: httpx2.Client) -> None:
    """A client that leaves its stream takes it up again where it left it."""
    seen: list[int] = []
    with client.responses.create(model="crafted", input="long", background=True, stream=True) as stream:
        for event in stream:
            seen.append(event.sequence_number)
            if event.type == "response.created":
                response_id = event.response.id
            if len(seen) == 9:
                break
    path = f"/v1/responses/{response_id}"
    rest = events_of(http.get(path, params={"stream": "true", "starting_after": seen[-1]}))
    assert [*seen, *(event["sequence_number"] for event in rest)] == list(range(rest[-1]["sequence_number"] + 1))
    assert rest[-1]["type"] == "response.completed"
    assert finished(client, response_id).output_text == SCRIPTS["long"].text()


def test_it_cannot_be_streamed_unless_it_was(client: openai.OpenAI) -> None:
    """As OpenAI documents it: only a response created as a stream has events."""
    made = client.responses.create(model="crafted", input="hello", background=True)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.retrieve(made.id, stream=True)
    assert caught.value.param == "stream"
    finished(client, made.id)


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling(client: openai.OpenAI, crafted_model: lib_mlx.Model, stream: bool) -> None:
    """It ends at once, keeps what it has, and the engine works on it no more. Cancelling again changes nothing."""
    if stream:
        with client.responses.create(**LONG, stream=True) as events:
            created = next(iter(events))
        assert created.type == "response.created"
        made = created.response
    else:
        made = client.responses.create(**LONG)
    eventually(lambda: client.responses.retrieve(made.id).status == "in_progress")
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="crafted", input="hello", previous_response_id=made.id)
    assert caught.value.param == "previous_response_id"
    cancelled = client.responses.cancel(made.id)
    check("openresponses", "ResponseResource", cancelled.to_dict())
    assert (cancelled.status, cancelled.error, cancelled.incomplete_details) == ("cancelled", None, None)
    assert cancelled.output_text.startswith(" round")
    assert cancelled.usage is not None
    assert 0 < cancelled.usage.output_tokens < 3000
    eventually(lambda: scheduler_depth(crafted_model) == 0)
    assert client.responses.cancel(made.id) == cancelled == client.responses.retrieve(made.id)
    if stream:
        replayed = list(client.responses.retrieve(made.id, stream=True))
        assert replayed[-1].type == "response.incomplete"
        assert replayed[-1].response == cancelled


def test_cancelling_what_is_finished(client: openai.OpenAI) -> None:
    """It stays as it is."""
    made = client.responses.create(model="crafted", input="hello", background=True)
    done = finished(client, made.id)
    assert client.responses.cancel(made.id) == done


def test_deleting_ends_it(client: openai.OpenAI, crafted_model: lib_mlx.Model) -> None:
    """What is deleted while it is made is made no further."""
    made = client.responses.create(**LONG)
    client.responses.delete(made.id)
    eventually(lambda: scheduler_depth(crafted_model) == 0)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_what_the_model_refuses_is_refused_at_once(http: httpx2.Client) -> None:
    """A model that is ready is asked first; an unknown one is not found."""
    for fields, status, code in (
        ({"input": "hello " * 5000}, 400, "context_length_exceeded"),
        ({"input": "hello", "model": "other"}, 404, "model_not_found"),
        ({"input": "hello", "store": False}, 400, "invalid_argument"),
    ):
        answer = http.post("/v1/responses", json={"background": True, **fields})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    cut = http.post("/v1/responses", json={"background": True, "truncation": "auto", "input": "hello"})
    assert cut.json()["truncation"] == "auto"


def test_it_counts_as_a_request_in_flight(crafted: Path) -> None:
    """The server takes no more of them than of any requests."""
    with (
        lib_mlx.load_model(crafted, model_id="crafted") as model,
        model.start_server(queue_limit=2) as server,
        httpx2.Client(base_url=server.base_url) as http,
    ):
        made = [http.post("/v1/responses", json=LONG) for _ in range(3)]
        assert [answer.status_code for answer in made] == [200, 200, 429]
        assert http.post(f"/v1/responses/{made[0].json()['id']}/cancel").json()["status"] == "cancelled"
        assert http.post("/v1/responses", json=LONG).status_code == 200


def test_a_server_that_stops_ends_it(crafted: Path) -> None:
    """Whoever streams it is told; the engine is left with nothing to do."""
    with lib_mlx.load_model(crafted, model_id="crafted") as model:
        server = model.start_server()
        with httpx2.Client(base_url=server.base_url, timeout=30) as http:
            http.post("/v1/responses", json=LONG)
            with http.stream("POST", "/v1/responses", json={**LONG, "stream": True}) as answer:
                lines = answer.iter_lines()
                while "output_text.delta" not in next(lines):
                    pass
                server.stop()
                assert 'data: {"type":"response.failed"' in (rest := "\n".join(lines))
                assert "shutting_down" in rest
        eventually(lambda: scheduler_depth(model) == 0)


@contextlib.contextmanager
def served(path: Path) -> Iterator[openai.OpenAI]:
    """Serve a model that is loaded when it is first asked for; nothing is left in flight."""
    registry = Registry()
    registry.add(ModelSpec("lazy", str(path)))
    listener = Listener(registry, ServerConfig(), get_runtime())
    listener.start()
    try:
        with openai.OpenAI(base_url=f"{listener.base_url}/v1", api_key="unused", max_retries=0) as client:
            yield client
            with httpx2.Client(base_url=listener.base_url) as http:
                eventually(lambda: http.get("/health").json()["in_flight"] == 0)
    finally:
        listener.stop()
        registry.close()


def test_a_model_is_loaded_meanwhile(crafted: Path) -> None:
    """A client does not wait for a load: the response is queued, and can be cancelled while it is."""
    with served(crafted) as client:
        fields: dict[str, Any] = {"model": "lazy", "input": "hello", "background": True}
        made = [client.responses.create(**fields, temperature=0.5) for _ in range(2)]
        assert {response.status for response in made} == {"queued"}
        assert client.responses.cancel(made[0].id).status in {"cancelled", "completed"}
        done = finished(client, made[1].id)
        assert (done.output_text, done.temperature) == (SCRIPTS["hello"].text(), 0.5)


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    """The response has failed, and says why."""
    with served(tmp_path / "nothing") as client:
        made = client.responses.create(model="lazy", input="hello", background=True)
        failed = finished(client, made.id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert "model_not_found" in failed.error.message


def test_what_a_model_refuses_once_it_is_loaded(crafted: Path) -> None:
    """It could not be asked at first: the response has failed."""
    with served(crafted) as client:
        made = client.responses.create(model="lazy", input="hello " * 5000, background=True)
        failed = finished(client, made.id)
        assert failed.error is not None
        assert "context_length_exceeded" in failed.error.message
