"""Completions: the fold, and the server through OpenAI's own client."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.errors import Cancelled
from lib_mlx.generation import Failed, Finished, TextDelta, Timings, Usage
from lib_mlx.runtime import get_runtime
from lib_mlx.server.openai.chunks import render
from lib_mlx.server.openai.completions import CompletionFold, Echo
from tests.checkpoints import SCRIPTS
from tests.server.specs import check

if TYPE_CHECKING:
    import httpx2
    import openai

    import lib_mlx

PROMPT = "<|go:hello|>"  # what the crafted template puts where the answer begins
HELLO = SCRIPTS["hello"].text()


def create(client: openai.OpenAI, **fields: Any) -> Any:
    """Complete at temperature 0."""
    return client.completions.create(**{"model": "crafted", "prompt": PROMPT, "temperature": 0, **fields})


def test_the_body_and_the_chunks_are_the_same_fold() -> None:
    """The same events give the same text and usage streamed or not; a prompt counts once for all its answers."""
    fold = CompletionFold("m", [Echo(0, "p"), Echo(0, "p"), Echo(1, "q")], include_usage=True)
    chunks = fold.opening()
    for index in range(3):
        for event in (TextDelta("a"), TextDelta("b"), Finished("stop", Usage(3, 1, 5), Timings())):
            chunks += fold.add(event, index)
    body = fold.body()
    check("openai", "CreateCompletionResponse", body)
    for index in range(3):
        pieces = [choice["text"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(pieces) == body["choices"][index]["text"] == ("pab", "pab", "qab")[index]
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (6, 15, 21)
    assert chunks[-1]["usage"] == usage
    assert chunks[-1]["choices"] == []


def test_an_error_in_the_middle() -> None:
    """The stream says why it ends."""
    out = render(CompletionFold("m", [Echo(0, "")]), [(0, TextDelta("a")), (0, Failed(Cancelled("gone")))])
    assert b'"code":"cancelled"' in out
    assert out.endswith(b"data: [DONE]\n\n")


def test_text_is_continued_as_it_is(client: openai.OpenAI) -> None:
    """No template comes in between; 16 tokens are the default."""
    answer = create(client, max_tokens=200)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion",
        HELLO,
        "stop",
    )
    assert answer.id.startswith("cmpl")
    assert create(client, prompt="<|go:loop|>").usage.completion_tokens == 16


def test_markers_are_text(client: openai.OpenAI) -> None:
    """What would be reasoning in a conversation is text here."""
    answer = create(client, prompt="<|go:think|>", max_tokens=200)
    assert "</think>" in answer.choices[0].text


def test_streamed(client: openai.OpenAI) -> None:
    """The pieces give the same text, and the usage comes last."""
    whole = create(client, max_tokens=200)
    chunks = list(create(client, max_tokens=200, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"


def test_several_prompts_and_answers(client: openai.OpenAI) -> None:
    """Answers are numbered prompt by prompt."""
    answer = create(client, prompt=[PROMPT, "<|go:think|>"], n=2, max_tokens=200)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert texts[0] == texts[1] == HELLO
    assert texts[2] == texts[3] != HELLO


def test_tokens_as_prompt(client: openai.OpenAI, http: httpx2.Client) -> None:
    """A prompt may be tokens; echo gives their text before the answer."""
    answer = create(client, max_tokens=200, echo=True)
    assert answer.choices[0].text == PROMPT + HELLO
    streamed = list(create(client, max_tokens=200, echo=True, stream=True))
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == PROMPT + HELLO
    unknown = http.post("/v1/completions", json={"prompt": [10**9]})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "invalid_argument")


def test_echo_while_the_tokenizer_is_busy(http: httpx2.Client, crafted_model: lib_mlx.Model) -> None:
    """Whoever waits for the text of tokens waits alone."""
    body = {"prompt": [1, 2, 3], "echo": True, "max_tokens": 2}
    with ThreadPoolExecutor(1) as pool:
        with get_runtime().engine(crafted_model._handle)._tokenizer.lock:
            answer = pool.submit(http.post, "/v1/completions", json=body)
            time.sleep(0.3)
            assert http.get("/livez", timeout=3).status_code == 200
            assert not answer.done()
        assert answer.result().status_code == 200


def test_logprobs(client: openai.OpenAI) -> None:
    """Each token has its place, its probability and its rivals', whole and streamed."""
    found = create(client, max_tokens=200, logprobs=2).choices[0]
    noted = found.logprobs
    assert "".join(noted.tokens) == found.text
    assert noted.text_offset[0] == 0
    assert [found.text[at : at + len(token)] for at, token in zip(noted.text_offset, noted.tokens, strict=True)] == (
        noted.tokens
    )
    assert all(value <= 0 for value in noted.token_logprobs)
    assert all(2 <= len(top) <= 3 for top in noted.top_logprobs)
    chunks = list(create(client, max_tokens=200, logprobs=2, stream=True))
    pieces = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [token for piece in pieces for token in piece.tokens] == noted.tokens
    assert [at for piece in pieces for at in piece.text_offset] == noted.text_offset


def test_stop(client: openai.OpenAI) -> None:
    """The text ends before the first of them."""
    answer = create(client, max_tokens=200, stop=[HELLO[5:8]])
    assert answer.choices[0].text == HELLO[: HELLO.index(HELLO[5:8])]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"suffix": "x"}, "unsupported_feature"),
        ({"best_of": 3}, "unsupported_feature"),
        ({"echo": True, "logprobs": 1}, "unsupported_feature"),
        ({"prompt": ""}, "invalid_argument"),
        ({"prompt": []}, "invalid_argument"),
        ({"prompt": [[]]}, "invalid_argument"),
        ({"prompt": [1, "a"]}, "invalid_argument"),
        ({"prompt": ["a"] * 129}, "invalid_argument"),
        ({"prompt": ["a"] * 100, "n": 2}, "invalid_argument"),
        ({"max_tokens": 0}, "invalid_argument"),
        ({"logprobs": 6}, "invalid_argument"),
        ({"messages": []}, "invalid_argument"),
        ({"tools": []}, "invalid_argument"),
        ({"stream_options": {"include_usage": True}}, "invalid_argument"),
        ({"prompt": "x " * 5000}, "context_length_exceeded"),
    ],
)
def test_refusals(http: httpx2.Client, fields: dict[str, Any], code: str) -> None:
    """What cannot be honoured is refused by name."""
    answer = http.post("/v1/completions", json={"prompt": PROMPT, **fields})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_the_defaults_of_openai_are_accepted(client: openai.OpenAI) -> None:
    """Fields that ask for what happens anyway change nothing."""
    answer = create(client, max_tokens=200, suffix="", best_of=1, n=1, user="me", presence_penalty=0)
    assert answer.choices[0].text == HELLO
