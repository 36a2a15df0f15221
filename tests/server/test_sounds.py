"""Sounds over HTTP: OpenAI's two dialects and forms, a model that hears behind them, and every refusal by its field."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import openai
import pytest

import lib_mlx
from tests.models.hearing import RATE, build, tone, written

if TYPE_CHECKING:
    from collections.abc import Iterator

SOUND = written(tone(1.3))
DATA = base64.b64encode(SOUND).decode()
CHAT = "/v1/chat/completions"
TEXT = {"type": "text", "text": "What?"}
WHERE = "messages.0.content.0.input_audio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lib_mlx.Model]:
    path = build(tmp_path_factory.mktemp("hearing") / "tiny")
    with lib_mlx.load_model(path, model_id="tiny") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def hearing(model: lib_mlx.Model) -> Iterator[lib_mlx.Server]:
    with model.start_server() as running:
        yield running


@pytest.fixture
def http_client(hearing: lib_mlx.Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=hearing.base_url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def answer(model: lib_mlx.Model) -> str:
    """The model's answer to the sound and the question, from the Python API."""
    options = {"max_tokens": 8, "sampling": lib_mlx.SamplingParams(temperature=0)}
    assert model.status().model is not None
    text = model.generate("What?", audio=[SOUND], **options).text
    assert text != model.generate("What?", **options).text
    assert text == model.generate([lib_mlx.Message("user", "What?", (lib_mlx.Sound(SOUND), "What?"))], **options).text
    return text


def part(data: str = DATA, kind: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}


def chat(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], "temperature": 0, "max_tokens": 8, **fields}


def test_chat_completions(hearing: lib_mlx.Server, answer: str) -> None:
    """OpenAI's client gets the answer, whole and as a stream; a second turn over the sound is mostly known."""
    with openai.OpenAI(base_url=f"{hearing.base_url}/v1", api_key="none", max_retries=0) as client:
        body: Any = chat(part(), TEXT)
        whole = client.chat.completions.create(model="tiny", **body)
        assert whole.choices[0].message.content == answer
        pieces = client.chat.completions.create(model="tiny", stream=True, **body)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == answer
        assert whole.usage is not None
        body["messages"] += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]
        second = client.chat.completions.create(model="tiny", **body)
        assert second.usage is not None
        assert second.usage.prompt_tokens_details is not None
        assert (second.usage.prompt_tokens_details.cached_tokens or 0) > 33


def test_responses(hearing: lib_mlx.Server, answer: str) -> None:
    """The Responses API too, also when a stored response is gone on from; what was sent can be looked at."""
    with openai.OpenAI(base_url=f"{hearing.base_url}/v1", api_key="none", max_retries=0) as client:
        common: Any = {"model": "tiny", "temperature": 0, "max_output_tokens": 8}
        parts: Any = [part(), {"type": "input_text", "text": "What?"}]
        first = client.responses.create(input=[{"role": "user", "content": parts}], **common)
        assert first.output_text == answer
        second = client.responses.create(input="And?", previous_response_id=first.id, **common)
        assert second.usage is not None
        assert second.usage.input_tokens_details.cached_tokens > 33
        kept = httpx2.get(f"{hearing.base_url}/v1/responses/{first.id}/input_items").json()["data"][0]
        assert kept["content"][0] == part()


def test_a_form(http_client: httpx2.Client, answer: str) -> None:
    """A file of a form stands for the data."""
    files: Any = {
        "request": (None, json.dumps(chat(part("attachment:speech"), TEXT))),
        "speech": ("speech.wav", SOUND, "audio/wav"),
    }
    got = http_client.post(CHAT, files=files)
    assert got.json()["choices"][0]["message"]["content"] == answer, got.text


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_other_formats(http_client: httpx2.Client, kind: str) -> None:
    """They are heard."""
    data = base64.b64encode(written(tone(1.3), kind.upper())).decode()
    got = http_client.post(CHAT, json=chat(part(data, kind), TEXT))
    assert got.status_code == 200, got.text


def test_what_the_model_tells_of_itself(http_client: httpx2.Client) -> None:
    """That it hears, in each dialect that lists capabilities."""
    assert {"vision", "audio"} <= set(http_client.get("/v1/models/tiny").json()["capabilities"])
    assert "audio" in http_client.post("/api/show", json={"model": "tiny"}).json()["capabilities"]


def refused(got: httpx2.Response, code: str, param: str, words: str) -> None:
    error = got.json()["error"]
    assert (got.status_code, error["code"], error["param"]) == (400, code, param), got.text
    assert words in error["message"]


@pytest.mark.parametrize(
    ("sent", "param", "words"),
    [
        (part("####"), f"{WHERE}.data", "not base64"),
        (part("data:image/png;base64,AAAA"), WHERE, "'image/png' is no sound"),
        (part(kind="aiff"), f"{WHERE}.format", "'aiff' is no format"),
        (part(kind="mp3"), f"{WHERE}.format", "is 'wav' and not 'mp3'"),
        (part("AAAA"), WHERE, "no known format"),
        (part(base64.b64encode(SOUND[:40]).decode()), WHERE, "cannot be read"),
        (part(base64.b64encode(written(np.zeros(31 * RATE, np.float32), "FLAC")).decode(), "flac"), WHERE, "30 s"),
        ({"type": "input_audio"}, WHERE, "no sound"),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, f"{WHERE}.data", ""),
    ],
    ids=["base64", "url", "format", "other", "unknown", "damaged", "long", "none", "empty"],
)
def test_bad_sounds(http_client: httpx2.Client, sent: Any, param: str, words: str) -> None:
    """Each is a 400 that names the field, and the server goes on."""
    got = http_client.post(CHAT, json=chat(sent, TEXT))
    assert got.status_code == 400
    assert got.json()["error"]["param"] == param
    assert words in got.json()["error"]["message"]
    assert http_client.post(CHAT, json=chat(TEXT)).status_code == 200


def test_where_sounds_may_stand(http_client: httpx2.Client) -> None:
    """Not in what a system says."""
    body = {"messages": [{"role": "system", "content": [part()]}, {"role": "user", "content": "a"}]}
    refused(http_client.post(CHAT, json=body), "unsupported_feature", "messages.0.content.0", "text alone")


def test_models_that_do_not_hear(http: httpx2.Client) -> None:
    """They say what they take, and the part that they do not."""
    refused(http.post(CHAT, json=chat(part())), "unsupported_feature", WHERE, "reads text, not sounds")
    items = [{"role": "user", "content": [{"type": "input_text", "text": "a"}, part()]}]
    got = http.post("/v1/responses", json={"input": items})
    refused(got, "unsupported_feature", "input.0.content.1.input_audio", "reads text, not sounds")
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    got = http.post("/v1/responses", json={"input": [{"role": "user", "content": [image]}]})
    refused(got, "unsupported_feature", "input.0.content.0.image_url", "reads text, not images")
