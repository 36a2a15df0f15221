"""Slow clients, and connections that are no HTTP; a Unix socket instead of a port."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

import lib_mlx
from lib_mlx.errors import AddressInUse, ServerStartFailed
from lib_mlx.runtime import get_runtime
from lib_mlx.server import connections, http
from tests.server.test_server import eventually, scheduler_depth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "loop"}],
    "max_tokens": 300,
    "logprobs": True,
    "top_logprobs": 20,
}
"""Half a megabyte."""


def narrow(model: lib_mlx.Model, server: lib_mlx.Server) -> lib_mlx.Server:
    """Have the kernel keep no more than a few kilobytes of what `server` sends."""
    listener = get_runtime()._find(model._handle).listener
    assert listener is not None
    listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
    return server


@pytest.fixture(scope="module")
def slow_model(crafted: Path) -> Iterator[lib_mlx.Model]:
    """A model whose server is `slow_server`."""
    with lib_mlx.load_model(crafted, model_id="crafted") as model:
        yield model


@pytest.fixture(scope="module")
def slow_server(slow_model: lib_mlx.Model) -> lib_mlx.Server:
    """A server that notices at once whether its clients read."""
    return narrow(slow_model, slow_model.start_server())


def ask_without_reading(server: lib_mlx.Server, path: str = CHAT, **body: Any) -> socket.socket:
    """Send a request on a connection whose kernel takes little more than what is read."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((server.host, server.port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return raw


def read_all(raw: socket.socket, pause_s: float = 0.0) -> bytes:
    """Read until the other side ends the connection, in whatever way."""
    raw.settimeout(10)
    out = bytearray()
    with suppress(ConnectionError):
        while data := raw.recv(65536):
            out += data
            time.sleep(pause_s)
            if out.endswith(b"0\r\n\r\n"):
                break
    return bytes(out)


def closed_within(raw: socket.socket, seconds: float) -> bool:
    """Whether the other side closes the connection in time."""
    raw.settimeout(seconds)
    try:
        while raw.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_uvicorn_is_as_it_was() -> None:
    """What our protocol class overrides is still there."""
    names = ("connection_made", "data_received", "connection_lost", "pause_writing", "resume_writing")
    for name in (*names, "send_400_response"):
        assert name in vars(H11Protocol)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A"])
def test_a_head_that_never_ends(server: lib_mlx.Server, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """The connection is closed, whether the head is the first of it or comes after an answer."""
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    with socket.create_connection((server.host, server.port)) as raw:
        raw.sendall(sent)
        assert closed_within(raw, 3)
    with socket.create_connection((server.host, server.port)) as raw:
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in raw.recv(4096)
        raw.sendall(sent or b"G")
        assert closed_within(raw, 3)


def test_a_head_byte_by_byte(server: lib_mlx.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending a little now and then buys no time."""
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    begun = time.monotonic()
    with socket.create_connection((server.host, server.port)) as raw, suppress(ConnectionError):
        while time.monotonic() < begun + 5:
            raw.sendall(b"G")
            time.sleep(0.05)
    assert time.monotonic() < begun + 3


def test_a_long_answer_is_no_slow_head(server: lib_mlx.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that only listens may take as long as the answer does."""
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    with httpx2.Client(base_url=server.base_url, timeout=30) as client:
        for _ in range(2):
            answer = client.post(CHAT, json={"messages": [{"role": "user", "content": "loop"}], "max_tokens": 400})
            assert answer.json()["usage"]["completion_tokens"] == 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_never_reads(
    slow_server: lib_mlx.Server, slow_model: lib_mlx.Model, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """It holds neither a slot nor a lease, and soon no connection: the answer breaks off."""
    monkeypatch.setattr(connections, "SEND_S", 0.5)
    with ask_without_reading(slow_server, **LONG, stream=stream) as raw:
        eventually(lambda: scheduler_depth(slow_model) == 1)
        eventually(lambda: httpx2.get(f"{slow_server.base_url}/health").json()["in_flight"] == 0, 10)
        eventually(lambda: httpx2.get(f"{slow_server.base_url}/v1/models/crafted").json()["requests"] == 0)
        assert scheduler_depth(slow_model) == 0
        time.sleep(1.2)
        assert not read_all(raw).endswith(b"0\r\n\r\n" if stream else b"}")


def test_a_client_that_reads_slowly(slow_server: lib_mlx.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets its whole answer, as long as it takes."""
    monkeypatch.setattr(connections, "SEND_S", 0.3)
    monkeypatch.setattr(connections, "SEND_BYTES", 1024)
    begun = time.monotonic()
    with ask_without_reading(slow_server, **LONG, stream=True) as raw:
        answer = read_all(raw, 0.005)
    assert b"data: [DONE]" in answer[-100:]
    assert time.monotonic() > begun + 0.6


def test_a_body_that_is_answered_before_it_ends(server: lib_mlx.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes on sending it is cut off, too."""
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    begun = time.monotonic()
    with socket.create_connection((server.host, server.port)) as raw, suppress(ConnectionError):
        raw.sendall(b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n")
        assert b" 404 " in raw.recv(4096)
        while time.monotonic() < begun + 5:
            raw.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() < begun + 3


def test_rude_clients_print_nothing(crafted: Path) -> None:
    """Whatever they do, also while the server stops, the host's stderr stays empty."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-m", "tests.server.rude_clients", str(crafted)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_head_that_is_too_large(server: lib_mlx.Server) -> None:
    """It is refused; the server goes on."""
    with socket.create_connection((server.host, server.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (connections.MAX_HEAD_BYTES + 100))
        assert closed_within(raw, 5)
    assert httpx2.get(f"{server.base_url}/health").status_code == 200


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n"])
def test_what_is_no_http(server: lib_mlx.Server, sent: bytes) -> None:
    """It is answered with a 400 in JSON, and the connection ends."""
    with socket.create_connection((server.host, server.port), timeout=5) as raw:
        raw.sendall(sent)
        head, _, body = b"".join(iter(lambda: raw.recv(4096), b"")).partition(b"\r\n\r\n")
    assert b" 400 " in head.partition(b"\r\n")[0]
    assert json.loads(body)["error"]["code"] == "invalid_argument"


def test_a_body_that_never_ends(server: lib_mlx.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a 408."""
    monkeypatch.setattr(http, "BODY_S", 0.3)
    with socket.create_connection((server.host, server.port), timeout=5) as raw:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        )
        raw.sendall(head.encode() + b"{")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert b"request_timeout" in answer


def test_a_client_that_leaves_in_mid_body(server: lib_mlx.Server, caplog: pytest.LogCaptureFixture) -> None:
    """It is nobody's defect: nothing is logged."""
    for kind in ("application/json", "multipart/form-data; boundary=x"):
        with socket.create_connection((server.host, server.port)) as raw:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 99\r\n\r\n"
            raw.sendall(head.encode() + b"--x")
            time.sleep(0.1)
    for _ in range(2):  # by then the server has seen that they left
        assert httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 0
    assert [record.getMessage() for record in caplog.records if record.name != "httpx2"] == []


def test_a_unix_socket(crafted: Path, tmp_path: Path) -> None:
    """The server listens there, for this user alone, and leaves nothing behind."""
    path = tmp_path / "server.sock"
    with lib_mlx.load_model(crafted) as model:
        for _ in range(2):
            with model.start_server(uds=str(path)) as server:
                assert server.uds == str(path)
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), timeout=30) as client:
                    assert client.post(f"http://localhost{CHAT}", json=HELLO).status_code == 200
                    assert client.get("http://evil.example/health").status_code == 403
            assert list(tmp_path.iterdir()) == []


def test_a_unix_socket_that_is_taken(crafted: Path, tmp_path: Path) -> None:
    """Somebody's socket and any other file are left alone; one that nobody listens on is replaced."""
    path = tmp_path / "server.sock"
    with lib_mlx.load_model(crafted) as model:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen(1)
            with pytest.raises(AddressInUse):
                model.start_server(uds=str(path))
        with model.start_server(uds=str(path)):
            pass
        path.write_text("mine")
        with pytest.raises(ServerStartFailed):
            model.start_server(uds=str(path))
        assert path.read_text() == "mine"
        with pytest.raises(ServerStartFailed):
            model.start_server(uds=str(tmp_path / "missing" / "x.sock"))
