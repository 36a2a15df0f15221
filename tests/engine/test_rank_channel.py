"""Rank 0's connections to the others: real sockets."""

from __future__ import annotations

import queue
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from lib_mlx.engine.rank_channel import Followers, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.engine.rank_channel import RankConnection
    from lib_mlx.errors import EngineDied


@pytest.fixture
def pair() -> Iterator[tuple[Followers, RankConnection]]:
    """Rank 0 and one other."""
    followers = Followers("127.0.0.1", 1)
    gathering = threading.Thread(target=followers.gather)
    gathering.start()
    host, port, _ = followers.address.decode().split()
    with socket.create_connection((host, int(port))) as stranger:  # who does not know the secret is sent away
        stranger.sendall(bytes(16))
        assert stranger.recv(1) == b""
    connection = connect(followers.address)
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
    lost: queue.SimpleQueue[EngineDied] = queue.SimpleQueue()
    followers.watch(lost.put)
    connection.close()
    assert lost.get(timeout=5).code == "engine_died"
    followers.tell({"do": "next"})  # nobody is there; nothing is raised


def test_what_a_rank_says_is_passed_on(pair: tuple[Followers, RankConnection]) -> None:
    """A rank that cannot go on says why."""
    followers, connection = pair
    lost: queue.SimpleQueue[EngineDied] = queue.SimpleQueue()
    followers.watch(lost.put)
    connection.send({"failed": "no memory"})
    assert "no memory" in lost.get(timeout=5).message


def test_silence_is_an_end(pair: tuple[Followers, RankConnection]) -> None:
    """Who is not heard of counts as gone, though its connection stands."""
    _, connection = pair
    connection._socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        connection.receive()
