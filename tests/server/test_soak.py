"""A minute of every dialect at once, with clients that leave, cancel and err: afterwards nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx2
import psutil
import pytest

import lib_mlx
from lib_mlx.runtime import get_runtime
from tests.checkpoints import SCRIPTS
from tests.server.test_server import eventually, scheduler_depth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lib_mlx.registry import ModelEntry, Registry
    from lib_mlx.server.listener import Listener

WARM_UP_S = 8.0
SOAK_S = 45.0
CLIENTS = 12
GROWTH_BYTES = 48 << 20
"""Of resident memory, after the warm-up."""

POOLS = ("asyncio_", "lib_mlx-embed_")
"""Threads that are made when they are first needed, a few of each."""
MODELS = ("own",) * 9 + ("other",)
WORDS = ("hello", "think", "tool", "unicode", "loop", "broken_tool", "empty")
MANNERS = ("stays",) * 6 + ("leaves before", "leaves at once", "leaves during", "is cancelled", "errs")
ENDS = {
    "/v1/chat/completions": b"data: [DONE]\n\n",
    "/v1/completions": b"data: [DONE]\n\n",
    "/v1/responses": b"data: [DONE]\n\n",
    "/v1/messages": b'data: {"type":"message_stop"}\n\n',
    "/api/chat": b"}\n",
    "/api/generate": b"}\n",
}
"""What the last piece of a stream ends with."""
WRONG: tuple[Any, ...] = ({}, {"messages": 1}, {"messages": [], "x": 1}, {"model": "nobody"}, [1], "x", {"input": [[]]})


def request(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Return some endpoint and a body for it."""
    model, word, tokens = chance.choice(MODELS), chance.choice(WORDS), chance.randint(1, 40)
    messages = [{"role": "user", "content": f"{word} {'x' * chance.choice((0, 0, 10, 300))}"}]
    stream = chance.random() < 0.5
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages, "max_tokens": tokens, "n": chance.choice((1, 1, 1, 3))},
        "/v1/responses": {"input": messages[0]["content"], "max_output_tokens": tokens},
        "/v1/completions": {"prompt": [f"<|go:{word}|>", "x"], "max_tokens": tokens, "user": chance.choice("ab")},
        "/v1/messages": {"messages": messages, "max_tokens": tokens},
        "/api/chat": {"messages": messages, "options": {"num_predict": tokens}},
        "/api/generate": {"prompt": word, "options": {"num_predict": tokens}},
        "/v1/embeddings": {"input": ["a text", word]},
        "/api/embed": {"input": word},
    }
    path = chance.choice(list(bodies))
    body = {"model": model, **bodies[path]}
    return path, {**body, "stream": stream} if path in ENDS else body


class Crowd:
    """Clients of one server, and what came of their requests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.manners: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []

    async def visit(self, seed: int, until: float) -> None:
        """Ask one thing after the other."""
        chance = random.Random(seed)
        while time.monotonic() < until:
            path, body = request(chance)
            manner = chance.choice(MANNERS)
            self.manners[manner] += 1
            async with asyncio.timeout(60):
                await self._ask(path, body, manner, chance)

    async def _ask(self, path: str, body: dict[str, Any], manner: str, chance: random.Random) -> None:
        content = json.dumps(chance.choice(WRONG) if manner == "errs" else body).encode()
        name = f"soak-{chance.getrandbits(64)}"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: {name}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            whole = head.encode() + content
            writer.write(whole[: chance.randrange(len(whole))] if manner == "leaves before" else whole)
            if manner == "leaves during":
                await reader.read(chance.choice((1, 300, 2000)))
            if manner.startswith("leaves"):
                await asyncio.sleep(chance.choice((0, 0.005)))
                return
            if manner == "is cancelled":
                await asyncio.sleep(chance.choice((0, 0.005, 0.02)))
                await self._cancel(name)
            self._judge(path, body, manner, await reader.read())
        finally:
            writer.transport.abort()

    async def _cancel(self, name: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"DELETE /v1/requests/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        self.statuses[int(answer[9:12])] += 1

    def _judge(self, path: str, body: dict[str, Any], manner: str, answer: bytes) -> None:
        """Count an answer that was read to its end, and note what is wrong with it."""
        status = int(answer[9:12] or 0)
        self.statuses[status] += 1
        expected = {"stays": {200}, "is cancelled": {200, 499}, "errs": {400, 404}}[manner]
        content = answer.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n0\r\n\r\n")
        if status not in expected:
            self.faults.append(f"{path} {body}: {answer!r}")
        elif manner == "stays" and body.get("stream") and not content.endswith(ENDS[path]):
            self.faults.append(f"{path} {body} ends with {content[-200:]!r}")
        elif path == "/v1/responses" and status == 200 and not body["stream"] and body["input"].strip() == "hello":
            said = json.loads(content)["output"][-1]["content"][0]["text"]
            if not SCRIPTS["hello"].text().startswith(said):
                self.faults.append(f"{path} said {said!r}")


class Counts:
    """What a server and its process hold. The clients are in the same process, and hold nothing between two crowds."""

    def __init__(self, listener: Listener) -> None:
        gc.collect()
        process = psutil.Process()
        names = [thread.name for thread in threading.enumerate()]
        self.threads = sorted(name for name in names if not name.startswith(POOLS))
        self.descriptors = process.num_fds()
        self.resident = process.memory_info().rss
        loop = listener._loop
        assert loop is not None
        self.tasks = asyncio.run_coroutine_threadsafe(self._count_tasks(), loop).result(5) - 1

    @staticmethod
    async def _count_tasks() -> int:
        return len(asyncio.all_tasks())


@pytest.fixture
def changes(registry: Registry) -> Iterator[Counter[str]]:
    """How often the further model was in each state."""
    seen: Counter[str] = Counter()
    last: list[str] = [""]

    def listen(entry: ModelEntry) -> None:
        if entry.id == "other" and entry.status != last[-1]:
            last.append(entry.status)
            seen[entry.status] += 1

    end = registry.subscribe(listen)
    yield seen
    end()


@pytest.fixture
def soaked(crafted: Path) -> Iterator[tuple[lib_mlx.Model, lib_mlx.Server]]:
    """A server with a model of its own, and another that is unloaded as soon as nobody uses it."""
    further = {"model_path": str(crafted), "model_id": "other", "prefix_cache_bytes": 0, "keep_alive": "50ms"}
    with lib_mlx.load_model(crafted, model_id="own", prefix_cache_bytes=8 << 20) as model:
        yield model, model.start_server(models=[further])


@pytest.fixture
def listener(soaked: tuple[lib_mlx.Model, lib_mlx.Server]) -> Listener:
    """What the server runs on."""
    found = get_runtime()._find(soaked[0]._handle).listener
    assert found is not None
    return found


@pytest.fixture
def registry(listener: Listener) -> Registry:
    """The server's models."""
    return listener._state.registry


def settle(model: lib_mlx.Model, server: lib_mlx.Server, registry: Registry) -> None:
    """Wait until nothing is under way."""

    def quiet() -> bool:
        return (
            httpx2.get(f"{server.base_url}/health").json()["in_flight"] == 0
            and scheduler_depth(model) == 0
            and {entry.id: (entry.status, entry.busy) for entry in registry.known()}
            == {"own": ("ready", 0), "other": ("available", 0)}
        )

    eventually(quiet, 20)
    time.sleep(0.5)


def stop_while_busy(server: lib_mlx.Server) -> tuple[float, list[bytes]]:
    """Stop the server in the middle of answers; return how long it took, and the answers' ends."""
    ends: list[bytes] = []
    loop = {"messages": [{"role": "user", "content": "loop"}], "stream": True}
    streaming = threading.Barrier(7)

    def listen() -> None:
        with httpx2.stream("POST", f"{server.base_url}/v1/chat/completions", json=loop, timeout=30) as answer:
            chunks = answer.iter_raw()
            heard = next(chunks)
            streaming.wait(20)  # before its first chunk a request is refused with a status, and no stream ends
            ends.append((heard + b"".join(chunks))[-200:])

    asking = [threading.Thread(target=listen) for _ in range(6)]
    for thread in asking:
        thread.start()
    streaming.wait(20)
    begun = time.monotonic()
    server.stop()
    taken = time.monotonic() - begun
    for thread in asking:
        thread.join(10)
    return taken, ends


@pytest.mark.alone
@pytest.mark.slow
def test_soak(
    soaked: tuple[lib_mlx.Model, lib_mlx.Server],
    listener: Listener,
    registry: Registry,
    changes: Counter[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Counters return to zero; tasks, threads and descriptors to what they were; memory stays; a stop is prompt."""
    model, server = soaked

    async def crowd(clients: Crowd, seconds: float, seed: int) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(clients.visit(seed + number, until) for number in range(CLIENTS)))

    asyncio.run(crowd(Crowd(server.port), WARM_UP_S, 1000))
    settle(model, server, registry)
    before, clients = Counts(listener), Crowd(server.port)
    begun, cpu = time.monotonic(), time.process_time()
    asyncio.run(crowd(clients, SOAK_S, 0))
    taken, worked = time.monotonic() - begun, time.process_time() - cpu
    settle(model, server, registry)
    after = Counts(listener)
    hello = {"messages": [{"role": "user", "content": "hello"}]}
    answer = httpx2.post(f"{server.base_url}/v1/chat/completions", json=hello)
    stop_s, ends = stop_while_busy(server)

    report(clients, changes, before, after)
    sys.stdout.write(f"{taken:.0f} s, {worked:.0f} s of CPU time; stopped in {stop_s:.2f} s amid six streams\n")
    assert clients.faults == []
    assert clients.manners.total() > 1000
    assert min(clients.manners[manner] for manner in MANNERS) > 20
    assert changes["ready"] > 10
    assert (after.threads, after.descriptors, after.tasks) == (before.threads, before.descriptors, before.tasks)
    assert after.resident - before.resident < GROWTH_BYTES
    assert answer.json()["choices"][0]["message"]["content"] == SCRIPTS["hello"].text()
    assert stop_s < 5
    assert [end for end in ends if b"shutting_down" not in end or not end.endswith(b"data: [DONE]\n\n")] == []
    assert len(ends) == 6
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def report(clients: Crowd, changes: Counter[str], before: Counts, after: Counts) -> None:
    """Print the figures."""
    mib = 1 << 20
    sys.stdout.write(
        f"\n{clients.manners.total()} requests: {dict(clients.manners)}\n"
        f"answers read to their end: {dict(sorted(clients.statuses.items()))}\n"
        f"the further model: {dict(changes)}\n"
        f"threads {len(before.threads)} -> {len(after.threads)}, tasks {before.tasks} -> {after.tasks}, "
        f"descriptors {before.descriptors} -> {after.descriptors}, "
        f"resident {before.resident / mib:.0f} -> {after.resident / mib:.0f} MiB\n"
    )
