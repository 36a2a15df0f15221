"""Time from process start to the first token on screen: the C demo against mlx_lm.server, alternating.

    python -m benchmarks.first_token [--runs 5] [--model smollm2] [--prompt TEXT]

lib_mlx: the program examples/c/chat, from its start to its first byte of answer. mlx_lm.server: from its start
to the first content of a streamed chat completion, asked for as soon as its port accepts a connection. On the CPU
half precision is so slow that it gets a copy of the checkpoint whose norms are float32 (see cpu_speed).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

WIDEN = "import sys, pathlib, benchmarks.cpu_speed as c; c.widened_copy(*map(pathlib.Path, sys.argv[1:]))"
ROOT = Path(__file__).resolve().parent.parent


def lib_mlx(model: str, prompt: str) -> float:
    """Seconds to the first byte of answer from the C demo."""
    begun = time.perf_counter()
    with subprocess.Popen([ROOT / "examples/c/chat", model, prompt], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        first = host.stdout.read(1)
        elapsed = time.perf_counter() - begun
        host.stdout.read()
    if not first or host.returncode:
        raise SystemExit(f"the demo failed with status {host.returncode}")
    return elapsed


def mlx_lm_server(model: str, prompt: str) -> float:
    """Seconds to the first content from mlx_lm.server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun = time.perf_counter()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", model, "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    ) as server:
        try:
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.02)
            body = {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": 8}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=300) as answer:
                for line in answer:
                    if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                        return time.perf_counter() - begun
            raise SystemExit("mlx_lm.server sent no content")
        finally:
            server.terminate()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt", default="What is the capital of France?")
    options = parser.parse_args()
    from lib_mlx.models.store import resolve

    model = str(resolve(options.model))
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", WIDEN, model, folder], check=True)  # MLX ends with that process
        for run in range(options.runs):
            ours.append(lib_mlx(model, options.prompt))
            theirs.append(mlx_lm_server(f"{folder}/float32", options.prompt))
            print(f"run {run + 1}: lib_mlx {ours[-1]:.2f} s, mlx_lm.server {theirs[-1]:.2f} s", flush=True)
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(
        f"median: lib_mlx {statistics.median(ours):.2f} s, mlx_lm.server {statistics.median(theirs):.2f} s; "
        f"mlx_lm.server takes {ratio:.2f} times as long"
    )


if __name__ == "__main__":
    main()
