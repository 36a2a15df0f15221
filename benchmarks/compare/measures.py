"""What is measured of a server, each within a time limit. Seconds, tokens per second, CPU milliseconds per token."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.compare.client import Answer, ask, is_healthy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from benchmarks.compare.peers import Server

Values = dict[str, float]
SENTENCE = "Tell me about the history of Rome. "
SENTENCE_TOKENS = 8
STREAMS = (1, 4, 8, 32)
LONG_ANSWER = 2000


@dataclass(frozen=True)
class Sizes:
    """How much is asked for, in tokens, and the limit of a measure in seconds."""

    prompt: int = 192
    """Wanted of the prompt that is timed."""
    read: int = 192
    """What it has, with the chat template's."""
    answer: int = 24
    long_prompt: int = 2048
    limit_s: float = 150.0


def prompt(number: int, tokens: int) -> str:
    """Return a prompt of about that many tokens whose beginning no other number shares."""
    return f"{number} is my number. Write a long story. " + SENTENCE * max(1, tokens // SENTENCE_TOKENS - 5)


async def start(server: Server, _: Sizes) -> Values:
    """From the process's start until it says that it is healthy, and until the first token of a first request."""
    ready = 0.0
    while server.running:
        if not ready and await is_healthy(server.port):
            ready = time.perf_counter() - server.begun
        if ready:
            with suppress(OSError, RuntimeError):
                answer = await ask(server.port, "What is the capital of France?", 8, model=server.model)
                return {"ready_s": ready, "first_token_s": answer.times[0] - server.begun}
        await asyncio.sleep(0.02)
    raise RuntimeError("the server ended")


async def prefill(server: Server, sizes: Sizes) -> Values:
    """How fast a prompt is read that was never seen, and the wait for one that was."""
    text = prompt(1, sizes.prompt)
    fresh = await ask(server.port, text, 4, model=server.model)
    again = await ask(server.port, text, 4, model=server.model)
    return {"prefill_tokens_s": sizes.read / fresh.wait, "cached_wait_s": again.wait}


def decode(streams: int) -> Callable[[Server, Sizes], Awaitable[Values]]:
    """How fast several streams get tokens together, and what CPU time a token takes."""

    async def measure(server: Server, sizes: Sizes) -> Values:
        async def one(number: int) -> Answer:
            await asyncio.sleep(0.02 * number)  # mlx_lm.server resets connections beyond five at once
            return await ask(server.port, prompt(100 * streams + number, 0), sizes.answer, model=server.model)

        cpu = server.cpu_s()
        answers = await asyncio.gather(*(one(number) for number in range(streams)))
        cpu = server.cpu_s() - cpu
        made = sum(len(answer.times) for answer in answers)
        return {
            f"decode_{streams}_tokens_s": together(answers),
            f"cpu_{streams}_ms": 1000 * cpu / made,
        }

    return measure


def together(answers: list[Answer]) -> float:
    """Tokens per second while all streams run; if they never do, from the first token to the last."""
    begin, end = max(answer.times[0] for answer in answers), min(answer.times[-1] for answer in answers)
    times = [moment for answer in answers for moment in answer.times]
    if sum(begin < moment <= end for moment in times) < 4 * len(answers):
        begin, end = min(times), max(times)
    return sum(begin < moment <= end for moment in times) / (end - begin)


async def stalls(server: Server, sizes: Sizes) -> Values:
    """The pauses of a running stream while another's long prompt is read: their 99th percentile and the longest.

    If the prompt takes longer than half the limit, both are left there, and the pause that is not over counts.
    """
    begun, running = asyncio.Event(), Answer(0.0)

    def watch(answer: Answer) -> bool:
        running.times = answer.times
        if len(answer.times) >= 4:
            begun.set()
        return False

    task = asyncio.create_task(ask(server.port, prompt(7, 0), LONG_ANSWER, until=watch, model=server.model))
    try:
        await begun.wait()
        sent = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(sizes.limit_s / 2):
                await ask(server.port, prompt(8, sizes.long_prompt), 1, model=server.model)
        ended = time.perf_counter()
    finally:
        task.cancel()
    moments = [sent, *(moment for moment in running.times if sent < moment < ended), ended]
    pauses = sorted(b - a for a, b in itertools.pairwise(moments))
    return {"stall_p99_s": pauses[(99 * (len(pauses) - 1) + 99) // 100], "stall_max_s": pauses[-1]}


async def disconnect(server: Server, _: Sizes) -> Values:
    """From the moment a client leaves a long answer until the server's CPU is idle (below a tenth for 0.2 s)."""
    await ask(server.port, prompt(9, 0), LONG_ANSWER, until=lambda answer: len(answer.times) >= 4, model=server.model)
    left = time.perf_counter()
    while True:
        before, at = server.cpu_s(), time.perf_counter()
        await asyncio.sleep(0.2)
        if server.cpu_s() - before < 0.1 * (time.perf_counter() - at):
            return {"recovery_s": at - left}


async def memory(server: Server, _: Sizes) -> Values:
    """Resident memory after all that, and the most there was."""
    now, peak = server.memory_bytes()
    return {"memory_mb": now / 1e6, "memory_peak_mb": peak / 1e6}


async def overhead(server: Server, _: Sizes) -> Values:
    """CPU time per token of 32 streams of a model that costs next to nothing."""
    await ask(server.port, "loop", 20, model=server.model)
    cpu = server.cpu_s()

    async def one(number: int) -> int:
        await asyncio.sleep(0.02 * number)
        return len((await ask(server.port, "loop", 200, model=server.model)).times)

    made = sum(await asyncio.gather(*(one(number) for number in range(32))))
    return {"overhead_ms": 1000 * (server.cpu_s() - cpu) / made}


MEASURES: Mapping[str, Callable[[Server, Sizes], Awaitable[Values]]] = {
    "start": start,
    "prefill": prefill,
    **{f"decode{streams}": decode(streams) for streams in STREAMS},
    "stalls": stalls,
    "disconnect": disconnect,
    "memory": memory,
}
