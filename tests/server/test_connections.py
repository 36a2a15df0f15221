"""Slow clients, and connections that are no HTTP; a Unix socket instead of a port."""

from __future__ import annotations

import socket
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

import lib_mlx
from lib_mlx.errors import AddressInUse, ServerStartFailed
from lib_mlx.server import connections, http

if TYPE_CHECKING:
    from pathlib import Path

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


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
    for name in ("connection_made", "data_received", "connection_lost"):
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


def test_a_head_that_is_too_large(server: lib_mlx.Server) -> None:
    """It is refused; the server goes on."""
    with socket.create_connection((server.host, server.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (connections.MAX_HEAD_BYTES + 100))
        assert closed_within(raw, 5)
    assert httpx2.get(f"{server.base_url}/health").status_code == 200


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
