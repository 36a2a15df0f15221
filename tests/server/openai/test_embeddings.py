"""Embeddings, through OpenAI's own client."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest

import lib_mlx
from lib_mlx.runtime import get_runtime
from tests.server.specs import check
from tests.server.test_server import eventually

if TYPE_CHECKING:
    from pathlib import Path

    import openai


def embed(client: openai.OpenAI, text: Any, **options: Any) -> list[list[float]]:
    """Return the vectors of a text or of several."""
    return [item.embedding for item in client.embeddings.create(model="crafted", input=text, **options).data]


def test_shape(http: httpx2.Client) -> None:
    """The body is OpenAI's, in the order of the input, with the tokens counted."""
    body = http.post("/v1/embeddings", json={"input": ["hello", "other text"], "model": "crafted"}).json()
    check("openai", "CreateEmbeddingResponse", body)
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 2


def test_vectors(client: openai.OpenAI) -> None:
    """They have length one, depend on the text alone, and are the same as floats and as base64."""
    one, two, again = embed(client, ["hello", "something else", "hello"])
    assert math.isclose(math.hypot(*one), 1, rel_tol=1e-5)
    assert one == again
    assert one != two
    assert np.allclose(embed(client, "hello", encoding_format="float")[0], one, atol=1e-6)


def test_dimensions(client: openai.OpenAI, http: httpx2.Client) -> None:
    """Fewer are kept and have length one again; more are refused."""
    (whole,) = embed(client, "hello")
    (short,) = embed(client, "hello", dimensions=8)
    assert len(short) == 8
    assert np.allclose(short, np.array(whole[:8]) / np.linalg.norm(whole[:8]), atol=1e-5)
    more = http.post("/v1/embeddings", json={"input": "hello", "dimensions": len(whole) + 1})
    assert (more.status_code, more.json()["error"]["param"]) == (400, "dimensions")


def test_long_texts(client: openai.OpenAI) -> None:
    """A text of several chunks gives one vector; its beginning alone another."""
    long = "word " * 400
    assert embed(client, long)[0] != embed(client, long[:500])[0]


def test_tokens(client: openai.OpenAI) -> None:
    """Tokens are texts too, one run or several."""
    assert embed(client, [1, 2, 3])[0] == embed(client, [[1, 2, 3], [4]])[0]


def test_suspended(http: httpx2.Client, crafted_model: lib_mlx.Model) -> None:
    """While the model is suspended nothing is embedded, and what needs no model is answered all the same."""
    runtime, handle = get_runtime(), crafted_model._handle
    with ThreadPoolExecutor(10) as pool:
        runtime.suspend(handle)
        try:
            answers = [pool.submit(http.post, "/v1/embeddings", json={"input": "hello"}) for _ in range(10)]
            eventually(lambda: http.get("/health").json()["in_flight"] == 10)
            time.sleep(0.3)
            assert not any(answer.done() for answer in answers)
            assert http.get("/v1/models", timeout=3).status_code == 200
        finally:
            runtime.resume(handle)
        assert {answer.result().status_code for answer in answers} == {200}


def test_stopping(crafted: Path) -> None:
    """Whoever waits for vectors is told that the server stops."""
    with lib_mlx.load_model(crafted) as model, ThreadPoolExecutor(8) as pool:
        server = model.start_server()
        long = {"input": ["word " * 500] * 500}
        answers = [
            pool.submit(httpx2.post, f"{server.base_url}/v1/embeddings", json=long, timeout=30) for _ in range(8)
        ]
        eventually(lambda: httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 8)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() < begun + 3
        results = [(answer.result().status_code, answer.result().json()["error"]["code"]) for answer in answers]
        assert results == [(503, "shutting_down")] * 8


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"input": ""}, "invalid_argument"),
        ({"input": []}, "invalid_argument"),
        ({"input": [""]}, "invalid_argument"),
        ({"input": [[]]}, "invalid_argument"),
        ({"input": ["a", 1]}, "invalid_argument"),
        ({"input": [-1]}, "invalid_argument"),
        ({"input": [10**9]}, "invalid_argument"),
        ({"input": "x " * 5000}, "context_length_exceeded"),
        ({"input": ["a"] * 2049}, "invalid_argument"),
        ({"dimensions": 0}, "invalid_argument"),
        ({"encoding_format": "int8"}, "invalid_argument"),
        ({"other": 1}, "invalid_argument"),
    ],
)
def test_refusals(http: httpx2.Client, fields: dict[str, Any], code: str) -> None:
    """A wrong input is a client's error."""
    answer = http.post("/v1/embeddings", json={"input": "hello", **fields})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert http.get("/health").json()["in_flight"] == 0


@pytest.mark.parametrize(
    ("wrong", "param", "said"),
    [
        ([], "input", "at least 1 item"),
        ("", "input", "at least 1 character"),
        (["a"] * 2049, "input", "at most 2048 items"),
        (["a", ""], "input.1", "at least 1 character"),
        ([1, -1], "input.1", "greater than or equal to 0"),
    ],
)
def test_what_is_wrong_is_told_of_the_shape_that_was_sent(
    http: httpx2.Client, wrong: Any, param: str, said: str
) -> None:
    """Of the four shapes an input may have, the complaint is about the one it has."""
    error = http.post("/v1/embeddings", json={"input": wrong}).json()["error"]
    assert error["param"] == param
    assert said in error["message"]
