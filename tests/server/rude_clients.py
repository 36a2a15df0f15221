"""A host whose server's clients have no manners: run by test_connections.py, which looks at what it prints."""

from __future__ import annotations

import socket
import sys
import time

import lib_mlx
from lib_mlx.server import connections
from tests.server.test_connections import CHAT, LONG, ask_without_reading, narrow, read_all

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\nContent-Type: "
RUDE = (
    b"\x16\x03\x01\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n",
    f"{HEAD}application/json\r\n\r\n{{".encode(),
    f"{HEAD}multipart/form-data; boundary=x\r\n\r\n--y\r\n".encode(),
)


def main() -> None:
    """Serve them, one at a time and then while the server stops."""
    connections.SEND_S = 0.3
    with lib_mlx.load_model(sys.argv[1]) as model:
        server = narrow(model, model.start_server())
        for rude in RUDE:
            with socket.create_connection((server.host, server.port)) as raw:
                raw.sendall(rude)
                time.sleep(0.1)
        for stream in (True, False):
            with ask_without_reading(server, **LONG, stream=stream) as raw:
                time.sleep(1.5)
                read_all(raw)
        connections.SEND_S = 60
        waiting = [ask_without_reading(server, **LONG, stream=stream) for stream in (True, False)]
        waiting += [socket.create_connection((server.host, server.port)) for _ in RUDE]
        for raw, rude in zip(waiting[2:], RUDE, strict=True):
            raw.sendall(rude[:-1])
        time.sleep(1)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() < begun + 5
        for raw in waiting:
            raw.close()


if __name__ == "__main__":
    main()
