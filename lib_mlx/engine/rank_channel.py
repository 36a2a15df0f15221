"""How rank 0 tells the other ranks what to do, and how each learns that another one is gone.

Over TCP and not MLX's collectives: a rank that waits for one computes (the ring polls its sockets), and would wait for
ever for a rank that is cut off. Each message is a length and JSON; empty ones say that the sender lives.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import orjson

from lib_mlx.errors import EngineDied

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD = struct.Struct("<I")
_PULSE_S = 2.0
_SILENCE_S = 10.0  # after which the other end counts as gone
_TOGETHER_S = 120.0  # for all ranks to have come
_TOKEN_BYTES = 16


class RankConnection:
    """One end of the connection between rank 0 and another rank. `send` may be called from any thread."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._lock = threading.Lock()
        connected.settimeout(_SILENCE_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._beat, name="lib_mlx-pulse", daemon=True).start()

    def send(self, message: dict[str, Any] | None) -> None:
        """Send `message`; raises OSError if the other end is gone."""
        data = b"" if message is None else orjson.dumps(message)
        with self._lock:
            self._socket.sendall(_HEAD.pack(len(data)) + data)

    def receive(self) -> dict[str, Any]:
        """Wait for a message; raises OSError if the other end is gone or has been silent for too long."""
        while True:
            (size,) = _HEAD.unpack(self._exactly(_HEAD.size))
            if size:
                message: dict[str, Any] = orjson.loads(self._exactly(size))
                return message

    def close(self) -> None:
        """Let the other end know that this one goes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionResetError("it has closed the connection")
            data += more
        return data

    def _beat(self) -> None:
        pause = threading.Event()
        with contextlib.suppress(OSError):
            while not pause.wait(_PULSE_S):
                self.send(None)


class Followers:
    """Rank 0's connections to all others.

    Args:
        host: the address of this machine that they can reach.
        count: how many they are.
    """

    def __init__(self, host: str, count: int) -> None:
        self._server = socket.create_server((host, 0))
        self._server.settimeout(_TOGETHER_S)
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._count = count
        self._connections: list[RankConnection] = []
        self._lost: Callable[[EngineDied], None] = lambda _error: None
        self.address = f"{host} {self._server.getsockname()[1]} {self._token.hex()}".encode()
        """For `connect`."""

    def gather(self) -> None:
        """Wait until all have come; raises OSError if they do not."""
        while len(self._connections) < self._count:
            connected, _ = self._server.accept()
            connected.settimeout(_SILENCE_S)
            with contextlib.suppress(OSError):
                if secrets.compare_digest(connected.recv(_TOKEN_BYTES, socket.MSG_WAITALL), self._token):
                    self._connections.append(RankConnection(connected))
                    continue
            connected.close()
        self._server.close()

    def watch(self, lost: Callable[[EngineDied], None]) -> None:
        """Have `lost` called, on a thread of its own, when one of them is gone or says that it cannot go on."""
        self._lost = lost
        for connection in self._connections:
            threading.Thread(target=self._hear, args=(connection,), name="lib_mlx-follower", daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        """Send `message` to all; whoever is gone is reported to `watch`."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(message)

    def report(self, said: str) -> EngineDied:
        """Tell whoever watches that the group is of no use any more; return the error that says so."""
        error = EngineDied(
            f"A rank of the model was lost: {said}.", hint="The service starts again; send the request again then."
        )
        self._lost(error)
        return error

    def close(self) -> None:
        """Let all of them end."""
        self._lost = lambda _error: None
        for connection in self._connections:
            connection.close()

    def _hear(self, connection: RankConnection) -> None:
        try:
            said = connection.receive().get("failed", "it said nothing that is known")
        except (OSError, ValueError) as error:
            said = str(error)
        self.report(said)


def connect(address: bytes) -> RankConnection:
    """Return the connection to the rank 0 of that `address`; raises OSError."""
    host, port, token = address.decode().split()
    connected = socket.create_connection((host, int(port)), _TOGETHER_S)
    connected.sendall(bytes.fromhex(token))
    return RankConnection(connected)
