"""`POST /v1/drain`: a server that takes nothing new and finishes what runs, for a balancer that sends it no more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import ollama
import openai
import pytest

import lib_mlx
from tests.checkpoints import SCRIPTS
from tests.server.test_management import families, value
from tests.server.test_server import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "own", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def draining(crafted: Path) -> Iterator[httpx2.Client]:
    """A client of a server that drains."""
    with lib_mlx.load_model(crafted, model_id="own") as model:
        server = model.start_server()
        with httpx2.Client(base_url=server.base_url, timeout=30) as client:
            assert client.post("/v1/drain").json() == {"object": "drain", "draining": True, "in_flight": 0}
            yield client


def test_streams_end_by_themselves(crafted: Path) -> None:
    """What has begun is finished, and counted till then; health says no at once, and yes when it is taken back."""
    with lib_mlx.load_model(crafted, model_id="own") as model:
        server = model.start_server()
        with httpx2.Client(base_url=server.base_url, timeout=30) as client:
            loop = {**HELLO, "messages": [{"role": "user", "content": "loop"}], "stream": True, "max_tokens": 400}
            with httpx2.stream("POST", server.base_url + CHAT, json=loop, timeout=30) as stream:
                pieces = stream.iter_lines()
                next(pieces)
                assert client.post("/v1/drain").json()["in_flight"] == 1
                health = client.get("/health")
                assert (health.status_code, health.json()["status"]) == (503, "draining")
                assert health.json()["in_flight"] == 1
                assert client.post("/v1/drain").json()["draining"] is True  # again
                refused = client.post(CHAT, json=HELLO)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                assert refused.json()["error"]["code"] == "draining"
                lines = [line for line in pieces if line]
            assert lines[-1] == "data: [DONE]"
            assert json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "length"
            eventually(lambda: client.get("/health").json()["in_flight"] == 0)
            assert value(families(client), "lib_mlx_draining") == 1
            assert client.delete("/v1/drain").json() == {"object": "drain", "draining": False, "in_flight": 0}
            assert (client.get("/health").status_code, value(families(client), "lib_mlx_draining")) == (200, 0)
            answer = client.post(CHAT, json=HELLO).json()
            assert answer["choices"][0]["message"]["content"] == SCRIPTS["hello"].text()


def test_clients_of_every_dialect(draining: httpx2.Client) -> None:
    """Each vendor's client gets an error it knows, with the reason."""
    url = str(draining.base_url).rstrip("/")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        for ask in (
            lambda: client.chat.completions.create(**HELLO, stream=True),
            lambda: client.responses.create(model="own", input="hello"),
            lambda: client.completions.create(model="own", prompt="hello"),
            lambda: client.embeddings.create(model="own", input="hello"),
        ):
            with pytest.raises(openai.InternalServerError) as caught:
                ask()
            assert (caught.value.status_code, caught.value.code) == (503, "draining")
    with (
        anthropic.Anthropic(base_url=url, api_key="-", max_retries=0) as claude,
        pytest.raises(anthropic.APIStatusError) as refused,
    ):
        claude.messages.create(**HELLO, max_tokens=3)
    assert refused.value.status_code == 503
    assert refused.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
    with ollama.Client(host=url) as llama, pytest.raises(ollama.ResponseError, match="takes no more") as told:
        llama.chat(**HELLO)
    assert told.value.status_code == 503


def test_models_can_be_tended(draining: httpx2.Client) -> None:
    """What asks a model nothing is done: its load, a look at what there is."""
    assert draining.post("/v1/models/own/load").json()["status"] == "ready"
    assert draining.get("/v1/models").status_code == draining.get("/livez").status_code == 200
    assert draining.get("/v1/drain").status_code == 405


def test_it_needs_the_key(crafted: Path) -> None:
    """Where there is a key, nobody drains a server without it."""
    with lib_mlx.load_model(crafted, model_id="own") as model:
        server = model.start_server(api_key="secret")
        with httpx2.Client(base_url=server.base_url, timeout=30) as client:
            for method in ("POST", "DELETE"):
                assert client.request(method, "/v1/drain").status_code == 401
            assert client.get("/health").json()["status"] == "ok"
            given = {"Authorization": "Bearer secret"}
            assert client.post("/v1/drain", headers=given).json()["draining"] is True
            assert client.get("/health").json()["status"] == "draining"
