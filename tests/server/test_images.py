"""Images over the wire: every dialect by its official client, forms, URLs, files; and what is refused."""

from __future__ import annotations

import base64
import http.server
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import ollama
import openai
import pytest

import lib_mlx
from lib_mlx.server import image_fetcher
from lib_mlx.server.image_fetcher import _is_public
from tests.fixtures import GUI
from tests.models.vision import PLAIN, plain_case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHOT = (GUI / "screenshots/dialog.png").read_bytes()
DATA = base64.b64encode(SHOT).decode()
URL = f"data:image/png;base64,{DATA}"
CHAT = "/v1/chat/completions"
SYSTEM = "You are a helpful assistant."
ASK = "Describe the image."
ANSWER = plain_case("one").facts["text"]
TOKENS = plain_case("one").facts["n_tokens"]


@pytest.fixture(scope="module")
def model() -> Iterator[lib_mlx.Model]:
    """tiny-qwen2-vl behind the Python API."""
    with lib_mlx.load_model(PLAIN, model_id="tiny") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def seeing(model: lib_mlx.Model) -> Iterator[lib_mlx.Server]:
    with model.start_server() as running:
        yield running


@pytest.fixture(scope="module")
def http_client(seeing: lib_mlx.Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=seeing.base_url, timeout=30) as client:
        yield client


def chat(*parts: Any, **fields: Any) -> dict[str, Any]:
    """A body whose prompt is that of the fixture, if `parts` are."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": list(parts)}]
    return {"messages": messages, "temperature": 0, "max_tokens": 10, **fields}


def picture(url: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


TEXT = {"type": "text", "text": ASK}


def test_chat_completions(seeing: lib_mlx.Server) -> None:
    """OpenAI's client gets the reference's answer, whole and as a stream."""
    body = chat(picture(URL), TEXT)
    with openai.OpenAI(base_url=f"{seeing.base_url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="tiny", **body)
        assert answer.choices[0].message.content == ANSWER
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == TOKENS
        pieces = client.chat.completions.create(model="tiny", stream=True, **body)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == ANSWER


def test_responses(seeing: lib_mlx.Server) -> None:
    """The Responses API too, and again when a stored response is gone on from."""
    parts: Any = [{"type": "input_image", "image_url": URL, "detail": "auto"}, {"type": "input_text", "text": ASK}]
    with openai.OpenAI(base_url=f"{seeing.base_url}/v1", api_key="none", max_retries=0) as client:
        common: Any = {"model": "tiny", "temperature": 0, "max_output_tokens": 10}
        first = client.responses.create(instructions=SYSTEM, input=[{"role": "user", "content": parts}], **common)
        assert first.output_text == ANSWER
        second = client.responses.create(instructions=SYSTEM, input="And?", previous_response_id=first.id, **common)
        assert second.usage is not None
        assert second.usage.input_tokens_details.cached_tokens >= TOKENS - 1
        counted = client.responses.input_tokens.count(
            model="tiny", instructions=SYSTEM, input=[{"role": "user", "content": parts}]
        )
        assert counted.input_tokens == TOKENS


def test_messages(seeing: lib_mlx.Server) -> None:
    """Anthropic's client: blocks in base64, beside text and in a tool's result."""
    source: Any = {"type": "base64", "media_type": "image/png", "data": DATA}
    block: Any = {"type": "image", "source": source}
    with anthropic.Anthropic(base_url=f"{seeing.base_url}/anthropic", api_key="none", max_retries=0) as client:
        common: Any = {"model": "tiny", "max_tokens": 10, "extra_body": {"temperature": 0}}
        messages: Any = [{"role": "user", "content": [block, {"type": "text", "text": ASK}]}]
        answer = client.messages.create(system=SYSTEM, messages=messages, **common)
        assert answer.content[0].type == "text"
        assert answer.content[0].text == ANSWER
        assert client.messages.count_tokens(model="tiny", system=SYSTEM, messages=messages).input_tokens == TOKENS
        call: Any = {"type": "tool_use", "id": "c", "name": "look", "input": {}}
        result: Any = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "Here"}, block]}
        turns: Any = [
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
        assert client.messages.create(messages=turns, **common).usage.input_tokens > TOKENS - 20
        info: Any = client.models.retrieve("tiny")
        assert info.capabilities.image_input.supported


def test_ollama(seeing: lib_mlx.Server) -> None:
    """Ollama's client: images of a message and of a prompt; `show` tells that the model sees."""
    client = ollama.Client(host=seeing.base_url)
    assert "vision" in httpx2.get(f"{seeing.base_url}/v1/models/tiny").json()["capabilities"]
    options = {"temperature": 0, "num_predict": 10}
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASK, "images": [SHOT]}]
    assert client.chat("tiny", messages=messages, options=options).message.content == ANSWER
    assert client.generate("tiny", ASK, system=SYSTEM, images=[SHOT], options=options).response == ANSWER
    assert "vision" in (client.show("tiny").capabilities or [])
    client._client.close()


def test_base64_in_lines(http_client: httpx2.Client) -> None:
    """Broken into lines, as many tools write it, it is base64 all the same."""
    lines = base64.encodebytes(SHOT).decode().replace("\n", "\r\n")
    answer = http_client.post(CHAT, json=chat(picture(f"data:image/png;charset=utf-8;base64,{lines}"), TEXT))
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER


def test_a_form(http_client: httpx2.Client) -> None:
    """Files of a form stand for images in every dialect."""
    shot = ("dialog.png", SHOT, "image/png")
    body = chat(picture("attachment:shot"), TEXT)
    answer = http_client.post(CHAT, files={"request": (None, json.dumps(body)), "shot": shot})
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    message = {"role": "user", "content": ASK, "images": ["attachment:shot"]}
    body = {
        "messages": [{"role": "system", "content": SYSTEM}, message],
        "options": {"temperature": 0, "num_predict": 10},
    }
    body |= {"model": "tiny", "stream": False}
    answer = http_client.post("/api/chat", files={"request": (None, json.dumps(body)), "shot": shot})
    assert answer.json()["message"]["content"] == ANSWER
    source = {"type": "base64", "media_type": "image/png", "data": "attachment:shot"}
    blocks = [{"type": "image", "source": source}, TEXT]
    body = {"model": "tiny", "max_tokens": 10, "temperature": 0, "system": SYSTEM}
    body |= {"messages": [{"role": "user", "content": blocks}]}
    answer = http_client.post("/v1/messages", files={"request": (None, json.dumps(body)), "shot": shot})
    assert answer.json()["content"][0]["text"] == ANSWER


def tokens(http_client: httpx2.Client, body: dict[str, Any]) -> int:
    answer = http_client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens"])


def test_how_much_of_an_image_is_seen(http_client: httpx2.Client) -> None:
    """`detail`, `mm_processor_kwargs` and profiles bound its pixels, and so its tokens."""
    large = "data:image/png;base64," + base64.b64encode((GUI / "screenshots/desktop.png").read_bytes()).decode()
    part = {"type": "input_image", "image_url": large}
    counted = http_client.post("/v1/responses/input_tokens", json={"input": [{"role": "user", "content": [part]}]})
    assert counted.json()["input_tokens"] > 1800
    whole = picture(large)
    assert tokens(http_client, chat(picture(large, detail="low"), max_tokens=1)) < 380
    assert tokens(http_client, chat(whole, max_tokens=1, mm_processor_kwargs={"max_pixels": 28 * 28 * 50})) < 80
    assert tokens(http_client, chat(whole, max_tokens=1, profile="fast")) < 380


def refused(answer: httpx2.Response, code: str, param: str, words: str = "") -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param), answer.text
    assert words in error["message"]


WHERE = "messages.1.content.0.image_url"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:text/plain;base64,AAAA", "'text/plain' is no image"),
        ("data:image/png;base64,####", "not base64"),
        ("data:image/png,abc", "not in base64"),
        ("data:image/png;base64,AAAA", "no known format"),
        (URL[:-800], "cannot be read"),
        ("ftp://a/b.png", "no URL"),
        ("nonsense", "no URL"),
    ],
)
def test_bad_images(http_client: httpx2.Client, url: str, words: str) -> None:
    """Each is a 400 that names the field."""
    refused(http_client.post(CHAT, json=chat(picture(url))), "invalid_argument", WHERE, words)


@pytest.mark.parametrize("url", ["https://example.com/a.png", "file:///etc/passwd", "/etc/passwd"])
def test_nothing_is_fetched_unless_allowed(http_client: httpx2.Client, url: str) -> None:
    """The refusal says which option allows it."""
    refused(http_client.post(CHAT, json=chat(picture(url))), "unsupported_feature", WHERE, "start the server with")


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "messages.1.content.0.input_audio"),
        ({"type": "video_url"}, "messages.1.content.0.video_url"),
        ({"type": "image_url"}, "messages.1.content.0.image_url"),
        (picture(URL, detail="medium"), "messages.1.content.0.image_url.detail"),
    ],
    ids=["audio", "video", "none", "detail"],
)
def test_parts_that_cannot_be_read(http_client: httpx2.Client, part: Any, param: str) -> None:
    """They are refused by name."""
    answer = http_client.post(CHAT, json=chat(part))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_bad_bounds(http_client: httpx2.Client) -> None:
    """Bounds that are none, or unknown options of a processor, are refused."""
    for options, param in (({"max_pixels": 0}, "max_pixels"), ({"depth": 2}, "depth")):
        answer = http_client.post(CHAT, json=chat(picture(URL), mm_processor_kwargs=options))
        refused(answer, "invalid_argument", f"mm_processor_kwargs.{param}")


def test_text_models(http: httpx2.Client) -> None:
    """They say that they read text."""
    error = "reads text, not images"
    refused(http.post(CHAT, json=chat(picture(URL))), "unsupported_feature", WHERE, error)
    message = {"role": "user", "content": "", "images": [DATA]}
    answer = http.post("/api/chat", json={"model": "crafted", "messages": [message]})
    assert error in answer.json()["error"]


class Web(http.server.BaseHTTPRequestHandler):
    """Pictures, and what a hostile server sends."""

    def do_GET(self) -> None:
        kind, status, content = {
            "/shot.png": ("image/png", 200, SHOT),
            "/page": ("text/html", 200, b"<html>"),
            "/gone": ("image/png", 404, b""),
            "/huge": ("image/png", 200, b"x" * ((32 << 20) + 1)),
        }.get(self.path, ("", 302, b""))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == 302:
            self.send_header("Location", "/shot.png" if self.path == "/moved" else self.path)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def serving(**config: Any) -> Iterator[httpx2.Client]:
    """Another server on the same kind of model."""
    with (
        lib_mlx.load_model(PLAIN, model_id="tiny") as loaded,
        loaded.start_server(**config) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        yield client


def test_urls(web: str) -> None:
    """Where any URL is allowed, images come, over redirects too; what is none, is gone or is too large does not."""
    with serving(image_urls="any") as client:
        for path in ("/shot.png", "/moved"):
            answer = client.post(CHAT, json=chat(picture(web + path), TEXT))
            assert answer.json()["choices"][0]["message"]["content"] == ANSWER
        for path, words in (("/page", "text/html"), ("/gone", "404"), ("/huge", "more than"), ("/loop", "too often")):
            answer = client.post(CHAT, json=chat(picture(web + path)))
            refused(answer, "invalid_argument", WHERE, words)
        answer = client.post(CHAT, json=chat(picture("http://127.0.0.1:1/a.png")))
        refused(answer, "invalid_argument", WHERE, "did not come")


def test_servers_that_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends a byte now and then, in its head or its body, is hung up on in time."""
    monkeypatch.setattr(image_fetcher, "TIME_S", 0.5)
    heads = (b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
    with socket.create_server(("127.0.0.1", 0)) as listener, serving(image_urls="any") as client:

        def drip() -> None:
            for head in heads:
                wire, _ = listener.accept()
                with wire, suppress(OSError):
                    wire.sendall(head)
                    while True:
                        wire.sendall(b"x")
                        time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        for _ in heads:
            begun = time.monotonic()
            answer = client.post(CHAT, json=chat(picture(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png")))
            refused(answer, "invalid_argument", WHERE, "did not come")
            assert time.monotonic() - begun < 5
        thread.join(5)
        assert not thread.is_alive()


def test_private_addresses(web: str) -> None:
    """Where public URLs are allowed, this machine and its network are not, by whatever name."""
    port = web.rpartition(":")[2]
    with serving(image_urls="public") as client:
        private = ("127.0.0.1", "localhost", "[::1]", "[::ffff:7f00:1]", "0.0.0.0", "169.254.169.254", "2130706433")
        for host in private:
            answer = client.post(CHAT, json=chat(picture(f"http://{host}:{port}/shot.png")))
            refused(answer, "invalid_argument", WHERE, "private address")
        answer = client.post(CHAT, json=chat(picture(f"http://user@127.0.0.1:{port}/shot.png")))
        refused(answer, "invalid_argument", WHERE, "without a user")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b:1::7f00:1", False),
        ("::7f00:1", False),
        ("::ffff:0:7f00:1", False),
        ("fec0::1", False),
        ("ff02::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    """Those that stand for another one are as public as that."""
    assert _is_public(address) is public


def test_files(tmp_path: Path) -> None:
    """Files come from the folders that are allowed, not by links out of them, and only as files."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a b.png").write_bytes(SHOT)
    (tmp_path / "out.png").write_bytes(SHOT)
    (tmp_path / "in/link.png").symlink_to(tmp_path / "out.png")
    inside = tmp_path / "in/a b.png"
    with serving(allowed_image_paths=[str(tmp_path / "in")]) as client:
        for url in (str(inside), inside.as_uri(), f"file://localhost{inside.as_uri().removeprefix('file://')}"):
            answer = client.post(CHAT, json=chat(picture(url), TEXT))
            assert answer.json()["choices"][0]["message"]["content"] == ANSWER, answer.text
        for path in ("out.png", "in/link.png", "in/../out.png", "in", "in/none.png", "in/\0"):
            answer = client.post(CHAT, json=chat(picture(f"{tmp_path}/{path}")))
            refused(answer, "invalid_argument", WHERE, "cannot be read")
