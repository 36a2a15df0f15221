"""Who may talk to the server: names, origins and keys."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

import lib_mlx
from lib_mlx.runtime import get_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def guarded(crafted: Path) -> Iterator[lib_mlx.Server]:
    """A server with a key, a further name and a page that may call it."""
    options: dict[str, Any] = {"allowed_hosts": ["my.box"], "allowed_origins": ["https://Example.org/"]}
    with lib_mlx.load_model(crafted) as model, model.start_server(api_key="auto", **options) as server:
        yield server


@pytest.fixture
def keyed(guarded: lib_mlx.Server) -> Iterator[httpx2.Client]:
    """A client that has the key."""
    headers = {"Authorization": f"Bearer {guarded.api_key}"}
    with httpx2.Client(base_url=guarded.base_url, headers=headers, timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:{port}", True),
        ("LOCALHOST", True),
        ("app.localhost:{port}", True),
        ("127.0.0.1:{port}", True),
        ("[::1]:{port}", True),
        ("192.168.1.20", True),
        ("my.box:{port}", True),
        ("evil.example:{port}", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("[fe80::1%25eth0]:{port}", True),
        ("localhost:", True),
        ("", False),
        ("[", False),
        ("[]", False),
        ("[::1]evil.example:{port}", False),
        ("localhost:evil.example", False),
        ("evil.example@localhost", False),
        ("localhost.", False),
    ],
)
def test_the_host_header(guarded: lib_mlx.Server, keyed: httpx2.Client, host: str, allowed: bool) -> None:
    """A name that anybody may have pointed at this machine is refused (DNS rebinding)."""
    answer = keyed.get("/v1/models", headers={"Host": host.format(port=guarded.port)})
    if allowed:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_host")


def test_a_request_without_a_host(guarded: lib_mlx.Server) -> None:
    """HTTP/1.0 allows it; this server does not."""
    with socket.create_connection((guarded.host, guarded.port), timeout=5) as raw:
        raw.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert b" 403 " in raw.recv(4096)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://example.org", True),
        ("https://EXAMPLE.org", True),
        ("{base_url}", True),
        ("https://evil.example", False),
        ("http://localhost:1", False),
        ("null", False),
        ("", False),
        ("http://[", False),
        ("http://[evil]", False),
        ("{base_url}/path", False),
        ("http://evil.example@{host}", False),
    ],
)
def test_the_origin_header(guarded: lib_mlx.Server, keyed: httpx2.Client, origin: str, allowed: bool) -> None:
    """Pages may call the server if they are listed, or come from it."""
    origin = origin.format(base_url=guarded.base_url, host=guarded.base_url.removeprefix("http://"))
    answer = keyed.post(CHAT, json=HELLO, headers={"Origin": origin})
    if allowed:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_origin")
        assert "access-control-allow-origin" not in answer.headers


def test_cors(guarded: lib_mlx.Server, keyed: httpx2.Client) -> None:
    """A listed page's preflight is answered without a key, and its answers can be read by it alone."""
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    preflight = httpx2.options(f"{guarded.base_url}{CHAT}", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://example.org"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    answer = keyed.post(CHAT, json=HELLO, headers={"Origin": "https://example.org"})
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    foreign = httpx2.options(f"{guarded.base_url}{CHAT}", headers={**asked, "Origin": "https://evil.example"})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "forbidden_origin")


def test_no_cors_unless_listed(http: httpx2.Client) -> None:
    """Without allowed_origins no header invites a page."""
    answer = http.get("/v1/models")
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic {key}"},
        {"Authorization": "{key}"},
        {"x-api-key": "{key}x"},
        {"Authorization": "Bearer \u00fc"},
    ],
)
def test_a_missing_or_wrong_key(guarded: lib_mlx.Server, headers: dict[str, str]) -> None:
    """It is a 401 that says what to send, on every route but the checks of health."""
    sent = {name: value.format(key=guarded.api_key).encode() for name, value in headers.items()}
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/v1/nothing")):
        answer = httpx2.request(method, guarded.base_url + path, headers=sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/v1/health", "/livez"):
        assert httpx2.get(guarded.base_url + path).status_code == 200


def test_the_key(guarded: lib_mlx.Server, keyed: httpx2.Client) -> None:
    """OpenAI's client sends it as it does, Anthropic's as `x-api-key`."""
    assert keyed.get("/v1/models").status_code == 200
    assert guarded.api_key is not None
    headers = {"x-api-key": guarded.api_key}
    assert httpx2.get(f"{guarded.base_url}/v1/models", headers=headers).status_code == 200
    with openai.OpenAI(base_url=f"{guarded.base_url}/v1", api_key=guarded.api_key, max_retries=0) as client:
        assert client.models.list().data
    with (
        openai.OpenAI(base_url=f"{guarded.base_url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_a_key_is_told_once(crafted: Path) -> None:
    """Whoever starts the server learns the key; a second start and the status do not repeat it."""
    with lib_mlx.load_model(crafted) as model:
        first = model.start_server(api_key="auto")
        second = model.start_server(api_key="auto")
        assert first.api_key
        assert len(first.api_key) >= 40
        assert second.api_key is None
        assert get_runtime().status(model._handle).server.api_key is None
        first.stop()
        assert model.start_server(api_key="auto").api_key not in {None, first.api_key}
