"""Sessions without a socket: however a request ends, its slot and its lease are given back once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from lib_mlx.config import EngineConfig
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import ShuttingDown, Suspended
from lib_mlx.generation import GenerationRequest, Message
from lib_mlx.registry import ModelSpec, Registry
from lib_mlx.server.session import Sessions

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path
    from typing import Any

REQUEST = GenerationRequest(messages=(Message("user", "loop"),), max_tokens=3)


@pytest.fixture(scope="module")
def registry(crafted: Path) -> Iterator[Registry]:
    """A registry of one model, which is loaded."""
    made = Registry()
    made.add(ModelSpec("a", str(crafted), EngineConfig(prefix_cache_bytes=0)))
    made.lease("a").result(30).release()
    yield made
    made.close()


async def cancel_after(work: Coroutine[Any, Any, None], steps: int) -> bool:
    """Run `work` for so many turns of the loop and cancel it; returns whether it had ended by then."""
    task = asyncio.create_task(work)
    for _ in range(steps):
        await asyncio.sleep(0 if steps < 20 else 0.0005)
    ended = task.done()
    task.cancel()
    await asyncio.wait([task])
    return ended


@pytest.mark.parametrize("what", ["lease", "start"])
def test_cancelled_at_any_moment(registry: Registry, what: str) -> None:
    """Wherever a task is cancelled, nothing stays taken: also if the lease comes as the wait for it ends."""

    async def use(sessions: Sessions) -> None:
        if what == "lease":
            async with sessions.lease("a"):
                await asyncio.sleep(0)
            return
        session = await sessions.start("a", [REQUEST], request_id="x")
        try:
            while not session.ended:
                await session.next()
        finally:
            session.close()

    async def main() -> None:
        sessions = Sessions(registry, 2)
        ended = [await cancel_after(use(sessions), steps) for steps in [*range(12), *range(20, 60)]]
        assert not ended[0]
        assert ended[-1]
        assert sessions.in_flight == 0
        for _ in range(1000):
            if registry.find("a").busy == 0:
                break
            await asyncio.sleep(0.005)
        assert registry.find("a").busy == 0
        sessions.close()

    asyncio.run(main())


def test_closed_while_a_lease_comes(registry: Registry) -> None:
    """A server that stops at that moment keeps none either."""

    async def main(steps: int) -> None:
        sessions = Sessions(registry, 2)

        async def use() -> None:
            async with sessions.lease("a"):
                await asyncio.sleep(0)

        task = asyncio.create_task(use())
        for _ in range(steps):
            await asyncio.sleep(0)
        sessions.close()
        await asyncio.wait([task])
        assert sessions.in_flight == 0

    for steps in range(8):
        asyncio.run(main(steps))
    assert registry.find("a").busy == 0


def test_closed_while_a_request_is_prepared(registry: Registry) -> None:
    """A request that becomes ready at the moment of the stop does not begin to run, with nobody to end it."""

    async def main() -> None:
        sessions = Sessions(registry, 2)
        ready = asyncio.Event()
        prepare = sessions.work

        async def prepared(*arguments: Any) -> Any:
            waiting = asyncio.create_task(prepare(*arguments))
            waiting.add_done_callback(lambda _: (ready.set(), sessions.close()))
            return await waiting

        sessions.work = prepared  # type: ignore[method-assign]
        with pytest.raises(ShuttingDown):
            await sessions.start("a", [REQUEST], request_id="x")
        assert ready.is_set()
        assert sessions.in_flight == 0

    asyncio.run(main())
    assert registry.find("a").busy == 0


@pytest.mark.parametrize("what", ["lease", "work"])
def test_resumed_before_it_noticed(crafted: Path, what: str) -> None:
    """A request that a suspension ended is told so also if the model goes on before it gets to know."""
    registry = Registry()
    registry.add(ModelSpec("a", str(crafted), EngineConfig(prefix_cache_bytes=0)))

    async def main() -> None:
        sessions = Sessions(registry, 2, fail_suspended=True)

        async def use() -> None:
            if what == "work":
                await sessions.work(time.sleep, 0.1)
            async with sessions.lease("a"):
                pass

        get_worker().submit(time.sleep, 0.2)  # the load cannot end before
        task = asyncio.create_task(use())
        await asyncio.sleep(0.01)
        assert not task.done()
        registry.suspend()
        sessions.suspended()
        registry.resume()
        with pytest.raises(Suspended):
            await task
        sessions.close()

    asyncio.run(main())
    registry.close()
