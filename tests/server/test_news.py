"""What changes, without a socket."""

from __future__ import annotations

import asyncio

from lib_mlx.registry import Registry
from lib_mlx.runtime import Runtime
from lib_mlx.server.news import News


def test_a_reader_who_comes_after_the_end() -> None:
    """It is told nothing more, and nothing goes on listening for it."""
    runtime = Runtime()

    async def main() -> None:
        news = News(Registry(), runtime)
        news.close()
        assert [change async for change in news.read(60)] == []

    asyncio.run(main())
    assert runtime._listeners == []
