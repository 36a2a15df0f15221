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
import time
from typing import TYPE_CHECKING, Any

import orjson

from lib_mlx.errors import EngineDied, LibMlxError, ServerStartFailed, error_from_json

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD = struct.Struct("<I")
_PULSE_S = 2.0
_SILENCE_S = 10.0  # after which the other end counts as gone
TOGETHER_S = 120.0
"""In which all ranks have to come together."""
_TOKEN_BYTES = 16
_GREETING = struct.Struct(f"<{_TOKEN_BYTES}sI")  # the secret of the group, and which rank it is
_GREETING_S = 2.0


class RankConnection:
    """One end of the connection between rank 0 and another rank. `send` may be called from any thread."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._lock = threading.Lock()
        connected.settimeout(_SILENCE_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._beat, name="lib_mlx-pulse", daemon=True).start()

    def send(self, message: dict[str, Any] | None) -> None:
        """Send `message`; raises OSError if the other end is gone, or does not read."""
        data = b"" if message is None else orjson.dumps(message)
        with self._lock:
            try:
                self._socket.sendall(_HEAD.pack(len(data)) + data)
            except OSError:
                self.close()  # a part may have been sent, which nothing may follow
                raise

    def receive(self) -> dict[str, Any]:
        """Wait for a message; raises OSError if the other end is gone or has been silent for too long."""
        while True:
            (size,) = _HEAD.unpack(_exactly(self._socket, _HEAD.size))
            if size:
                message: dict[str, Any] = orjson.loads(_exactly(self._socket, size))
                return message

    def close(self) -> None:
        """Let the other end know that this one goes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

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
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._count = count
        self._connections: dict[int, RankConnection] = {}
        self._loaded = threading.Semaphore(0)
        self._lost: Callable[[LibMlxError], None] = lambda _error: None
        self.address = f"{host} {self._server.getsockname()[1]} {self._token.hex()}".encode()
        """For `connect`."""

    def gather(self, timeout_s: float = TOGETHER_S) -> None:
        """Wait until all have come.

        Raises:
            ServerStartFailed: they have not, after `timeout_s`.
        """
        until = time.monotonic() + timeout_s
        with self._server:
            while len(self._connections) < self._count:
                self._server.settimeout(max(0.001, until - time.monotonic()))
                try:
                    connected, _ = self._server.accept()
                except TimeoutError:
                    raise ServerStartFailed(
                        f"Only {len(self._connections)} of {self._count} other ranks reached rank 0 "
                        f"at {self.address.split()[0].decode()} within {timeout_s:g} s.",
                        hint="Let the hosts connect to any port of the first host's address.",
                    ) from None
                if (rank := self._greeting(connected)) is None:
                    connected.close()
                else:
                    self._connections[rank] = RankConnection(connected)

    def watch(self, lost: Callable[[LibMlxError], None]) -> None:
        """Have `lost` called, on a thread of its own, when one of them is gone or says why it cannot go on."""
        self._lost = lost
        for rank, connection in self._connections.items():
            threading.Thread(target=self._hear, args=(rank, connection), name="lib_mlx-follower", daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        """Send `message` to all; whoever is gone is reported to `watch`."""
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.send(message)

    def await_loaded(self) -> None:
        """Wait until all have their parts. If one is lost meanwhile this does not return: `watch` tells."""
        for _ in range(self._count):
            self._loaded.acquire()

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
        for connection in self._connections.values():
            connection.close()

    def _greeting(self, connected: socket.socket) -> int | None:
        """Return which rank has connected; None if it is a stranger."""
        connected.settimeout(_GREETING_S)
        try:
            token, rank = _GREETING.unpack(_exactly(connected, _GREETING.size))
        except OSError:
            return None
        known = secrets.compare_digest(token, self._token) and 0 < rank <= self._count
        return rank if known and rank not in self._connections else None

    def _hear(self, rank: int, connection: RankConnection) -> None:
        try:
            while "loaded" in (said := connection.receive()):
                self._loaded.release()
            error = error_from_json(said["failed"])
        except (OSError, ValueError, LookupError) as trouble:
            self.report(f"rank {rank}: {trouble}")
        else:
            error.message = f"Rank {rank}: {error.message}"
            self._lost(error)


def connect(address: bytes, rank: int) -> RankConnection:
    """Return the connection of `rank` to the rank 0 of that `address`; raises OSError."""
    host, port, token = address.decode().split()
    connected = socket.create_connection((host, int(port)), TOGETHER_S)
    connected.sendall(_GREETING.pack(bytes.fromhex(token), rank))
    return RankConnection(connected)


def _exactly(connected: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connected.recv(size - len(data))
        if not more:
            raise ConnectionResetError("it has closed the connection")
        data += more
    return data
