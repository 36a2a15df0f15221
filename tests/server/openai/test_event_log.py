"""The log of a stream's events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lib_mlx.server.openai import event_log
from lib_mlx.server.openai.event_log import EventLog
from lib_mlx.server.sse import DONE, KEEP_ALIVE

if TYPE_CHECKING:
    import pytest


async def read(log: EventLog, start: int) -> bytes:
    """Read to the end."""
    return b"".join([chunk async for chunk in log.follow(start)])


def test_readers_begin_anywhere_and_end_together() -> None:
    """Those who come early, in the middle and after the end read the same events from their place on."""

    async def scenario() -> list[bytes]:
        log = EventLog()
        early = [asyncio.create_task(read(log, start)) for start in (0, 1, 9)]
        await asyncio.sleep(0)
        log.extend([b"a", b"b"])
        await asyncio.sleep(0)
        middle = asyncio.create_task(read(log, 1))
        log.extend([b"c"])
        log.extend([b"d"], closed=True)
        assert log.bytes == 4
        return [*await asyncio.gather(*early, middle), await read(log, 3), await read(log, 4)]

    told = [part.removesuffix(DONE) for part in asyncio.run(scenario())]
    assert told == [b"abcd", b"bcd", b"", b"bcd", b"d", b""]


def test_a_connection_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens, something is sent."""

    async def scenario() -> list[bytes]:
        log = EventLog()
        reader = log.follow()
        first = await anext(reader)
        log.extend([b"a"], closed=True)
        return [first, *[chunk async for chunk in reader]]

    monkeypatch.setattr(event_log, "KEEP_ALIVE_S", 0.01)
    assert asyncio.run(scenario()) == [KEEP_ALIVE, b"a", DONE]
