"""Videos over HTTP: OpenAI's two dialects and forms, a model that has tokens for them, and every refusal."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

import lib_mlx
from tests.models.films import film
from tests.models.vision import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILM = film("mp4", count=40)
URL = "data:video/mp4;base64," + base64.b64encode(FILM).decode()
CHAT = "/v1/chat/completions"
TEXT = {"type": "text", "text": "What?"}
WHERE = "messages.0.content.0.video_url"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("films")
    (path / "a.mp4").write_bytes(FILM)
    return path


@pytest.fixture(scope="module")
def http_client(folder: Path) -> Iterator[httpx2.Client]:
    with (
        lib_mlx.load_model(PLAIN, model_id="tiny") as model,
        model.start_server(allowed_image_paths=[str(folder)]) as server,
        httpx2.Client(base_url=server.base_url, timeout=30) as client,
    ):
        yield client


def part(url: str = URL, kind: str = "video_url") -> dict[str, Any]:
    return {"type": kind, "video_url": {"url": url}}


def chat(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], "temperature": 0, "max_tokens": 6, **fields}


def answer(client: httpx2.Client, **fields: Any) -> tuple[str, int]:
    got = client.post(CHAT, json=chat(part(), TEXT, **fields))
    assert got.status_code == 200, got.text
    return got.json()["choices"][0]["message"]["content"], got.json()["usage"]["prompt_tokens"]


def test_every_way_in(http_client: httpx2.Client, folder: Path) -> None:
    """Data URLs, files that are allowed, forms, and the Responses API give one answer."""
    expected, tokens = answer(http_client)
    for sent in (part(str(folder / "a.mp4")), part((folder / "a.mp4").as_uri()), part(kind="input_video")):
        got = http_client.post(CHAT, json=chat(sent, TEXT)).json()
        assert got["choices"][0]["message"]["content"] == expected
    files: Any = {"request": (None, json.dumps(chat(part("attachment:a"), TEXT))), "a": ("a.mp4", FILM, "video/mp4")}
    assert http_client.post(CHAT, files=files).json()["choices"][0]["message"]["content"] == expected
    items = [{"role": "user", "content": [{"type": "input_video", "video_url": URL}, {**TEXT, "type": "input_text"}]}]
    body = {"input": items, "temperature": 0, "max_output_tokens": 6}
    got = http_client.post("/v1/responses", json=body).json()
    assert got["output"][0]["content"][0]["text"] == expected
    assert got["usage"]["input_tokens"] == tokens
    more = {**body, "input": "And?", "previous_response_id": got["id"]}
    again = http_client.post("/v1/responses", json=more).json()
    assert again["usage"]["input_tokens_details"]["cached_tokens"] >= tokens - 1


def test_how_much_is_seen(http_client: httpx2.Client) -> None:
    """Frames a second, the most frames and the most pixels of a frame change how many tokens a video takes."""
    _, whole = answer(http_client)  # 8 frames, two a step
    assert answer(http_client, mm_processor_kwargs={"fps": 4})[1] > whole + 80
    assert answer(http_client, mm_processor_kwargs={"fps": 4, "max_frames": 4})[1] < whole
    assert answer(http_client, mm_processor_kwargs={"max_pixels": 28 * 28 * 6})[1] < whole


@pytest.mark.parametrize(
    ("options", "param"), [({"fps": 0}, "fps"), ({"fps": 1e9}, "fps"), ({"max_frames": 769}, "max_frames")]
)
def test_bad_bounds(http_client: httpx2.Client, options: dict[str, Any], param: str) -> None:
    """They are refused by name."""
    got = http_client.post(CHAT, json=chat(part(), mm_processor_kwargs=options))
    assert (got.status_code, got.json()["error"]["param"]) == (400, f"mm_processor_kwargs.{param}")


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (part("data:image/png;base64,AAAA"), "'image/png' is no video"),
        (part("data:video/mp4;base64,AAAA"), "no known format"),
        (part("data:video/mp4;base64," + base64.b64encode(FILM[:500]).decode()), "cannot be read"),
        (part("https://example.com/a.mp4"), "reads no videos from URLs"),
        (part("/etc/passwd"), "in none of the folders"),
        (part("nonsense"), "no URL of a video"),
        ({"type": "video_url"}, "no video"),
    ],
)
def test_bad_videos(http_client: httpx2.Client, sent: Any, words: str) -> None:
    """Each is a 400 that names the field."""
    got = http_client.post(CHAT, json=chat(sent))
    assert (got.status_code, got.json()["error"]["param"]) == (400, WHERE), got.text
    assert words in got.json()["error"]["message"]


def test_who_watches(http_client: httpx2.Client, http: httpx2.Client) -> None:
    """A model tells that it does; one that reads text says so."""
    assert "video" in http_client.get("/v1/models/tiny").json()["capabilities"]
    error = http.post(CHAT, json=chat(part())).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_feature", WHERE)
    assert "reads text, not videos" in error["message"]
