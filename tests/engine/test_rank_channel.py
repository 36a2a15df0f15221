"""Rank 0's connections to the others: real sockets."""

from __future__ import annotations

import queue
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from lib_mlx.engine.rank_channel import Followers, connect
from lib_mlx.errors import InsufficientMemory, ServerStartFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.engine.rank_channel import RankConnection
    from lib_mlx.errors import LibMlxError


@pytest.fixture
def pair() -> Iterator[tuple[Followers, RankConnection]]:
    """Rank 0 and one other."""
    followers = Followers("127.0.0.1", 1)
    gathering = threading.Thread(target=followers.gather)
    gathering.start()
    host, port, _ = followers.address.decode().split()
    with socket.create_connection((host, int(port))) as stranger:  # who does not know the secret is sent away
        stranger.sendall(bytes(20))
        assert stranger.recv(1) == b""
    connection = connect(followers.address, 1)
    gathering.join(5)
    yield followers, connection
    connection.close()
    followers.close()


def test_commands_arrive_in_order(pair: tuple[Followers, RankConnection]) -> None:
    """What rank 0 tells arrives whole and in order."""
    followers, connection = pair
    for number in range(200):
        followers.tell({"do": number, "text": "x" * number * 50})
    assert [connection.receive()["do"] for _ in range(200)] == list(range(200))


def test_the_other_end_is_missed(pair: tuple[Followers, RankConnection]) -> None:
    """Rank 0 hears that another is gone, and the others that rank 0 is."""
    followers, connection = pair
    lost: queue.SimpleQueue[LibMlxError] = queue.SimpleQueue()
    followers.watch(lost.put)
    connection.close()
    assert lost.get(timeout=5).code == "engine_died"
    followers.tell({"do": "next"})  # nobody is there; nothing is raised


def test_what_a_rank_says_is_passed_on(pair: tuple[Followers, RankConnection]) -> None:
    """A rank that cannot go on says why."""
    followers, connection = pair
    lost: queue.SimpleQueue[LibMlxError] = queue.SimpleQueue()
    followers.watch(lost.put)
    connection.send({"loaded": True})
    followers.await_loaded()
    connection.send({"failed": InsufficientMemory("no memory", hint="more").to_json()})
    error = lost.get(timeout=5)
    assert (error.code, error.message) == ("insufficient_memory", "Rank 1: no memory")


def test_who_does_not_come() -> None:
    """A rank that does not come within the time is told of, and strangers do not prolong it."""
    followers = Followers("127.0.0.1", 2)
    host, port, _ = followers.address.decode().split()
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(bytes(20))
        with pytest.raises(ServerStartFailed, match=r"0 of 2 other ranks reached rank 0 at 127\.0\.0\.1"):
            followers.gather(0.3)
    with pytest.raises(ConnectionError):
        connect(followers.address, 1)


def test_nothing_follows_half_a_message(pair: tuple[Followers, RankConnection]) -> None:
    """Who does not read what it is sent counts as gone: what comes after a part of a message could mean anything."""
    followers, _ = pair
    lost: queue.SimpleQueue[LibMlxError] = queue.SimpleQueue()
    followers.watch(lost.put)
    followers._connections[1]._socket.settimeout(0.2)
    followers.tell({"text": "x" * (32 << 20)})
    assert lost.get(timeout=5).code == "engine_died"


def test_silence_is_an_end(pair: tuple[Followers, RankConnection]) -> None:
    """Who is not heard of counts as gone, though its connection stands."""
    _, connection = pair
    connection._socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        connection.receive()
