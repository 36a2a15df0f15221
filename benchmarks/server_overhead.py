"""What a server adds to each token: many streams of a model that costs next to nothing, against mlx_lm.server.

    python -m benchmarks.server_overhead [--runs 3] [--streams 32] [--tokens 200]

The model is a crafted one-layer checkpoint; the streams run at once. Printed are CPU seconds of the server's process
per token and tokens per second of wall time, alternating between the two servers in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil

from tests.checkpoints import build

OURS = """
import sys, time, lib_mlx
model = lib_mlx.load_model(sys.argv[1])
model.start_server(port=int(sys.argv[2]))
time.sleep(600)
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def drive(url: str, streams: int, tokens: int) -> int:
    """Run `streams` endless answers of `tokens` tokens at once; return how many pieces of text came."""
    body = {"messages": [{"role": "user", "content": "loop"}], "stream": True, "max_tokens": tokens, "temperature": 0}

    async def one(client: httpx2.AsyncClient, number: int) -> int:
        await asyncio.sleep(0.02 * number)  # mlx_lm.server resets connections beyond five at once
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            return sum([line.startswith("data: {") async for line in answer.aiter_lines()])

    async with httpx2.AsyncClient(timeout=300, limits=httpx2.Limits(max_connections=streams)) as client:
        return sum(await asyncio.gather(*(one(client, number) for number in range(streams))))


def measure(command: list[str], port: int, streams: int, tokens: int) -> tuple[float, float]:
    """Return CPU milliseconds per token and tokens per second of the server that `command` starts."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
            url = f"http://127.0.0.1:{port}"
            asyncio.run(drive(url, 2, 20))  # loads what is loaded lazily
            server = psutil.Process(process.pid)
            before, begun = server.cpu_times(), time.perf_counter()
            pieces = asyncio.run(drive(url, streams, tokens))
            elapsed, after = time.perf_counter() - begun, server.cpu_times()
            if pieces < streams * tokens:
                raise SystemExit(f"only {pieces} pieces of text for {streams * tokens} tokens")
            cpu = after.user + after.system - before.user - before.system
            return 1000 * cpu / (streams * tokens), streams * tokens / elapsed
        finally:
            process.kill()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = str(build(Path(folder) / "crafted"))
        rows: list[tuple[tuple[float, float], tuple[float, float]]] = []
        for run in range(options.runs):
            port = free_port()
            ours = measure([sys.executable, "-c", OURS, model, str(port)], port, options.streams, options.tokens)
            port = free_port()
            peer = [sys.executable, "-m", "mlx_lm", "server", "--model", model, "--port", str(port)]
            theirs = measure(peer, port, options.streams, options.tokens)
            rows.append((ours, theirs))
            print(
                f"run {run + 1}: lib_mlx {ours[0]:.3f} ms CPU/token, {ours[1]:.0f} tokens/s; "
                f"mlx_lm.server {theirs[0]:.3f} ms CPU/token, {theirs[1]:.0f} tokens/s",
                flush=True,
            )
    cpu = statistics.median(theirs[0] / ours[0] for ours, theirs in rows)
    speed = statistics.median(ours[1] / theirs[1] for ours, theirs in rows)
    print(f"median: mlx_lm.server uses {cpu:.2f} times the CPU per token; lib_mlx gives {speed:.2f} times the tokens/s")


if __name__ == "__main__":
    main()
