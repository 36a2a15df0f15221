"""What isolation costs: process start to a first token over HTTP, and memory; with the engine in host or child.

    python -m benchmarks.isolation [--runs 5] [--model smollm2]

Each host is a new Python process; in turn. Memory is what host and child have resident after one answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

HOST = """
import json, sys, urllib.request
import lib_mlx, psutil
model = lib_mlx.load_model(sys.argv[1], isolation=sys.argv[2])
server = model.start_server()
body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}).encode()
request = urllib.request.Request(server.base_url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
urllib.request.urlopen(request).read()
host = psutil.Process()
child = sum(process.memory_info().rss for process in host.children())
print(json.dumps({"host": host.memory_info().rss, "child": child}), flush=True)
"""


def run(model: str, isolation: str) -> dict[str, Any]:
    """Return seconds to the first token, and the memory of host and child in bytes."""
    begun = time.monotonic()
    command = [sys.executable, "-c", HOST, model, isolation]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told: dict[str, Any] = json.loads(process.stdout.readline())
        seconds = time.monotonic() - begun
    return {"seconds": seconds, **told}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="smollm2")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {"none": [], "process": []}
    for _ in range(options.runs):
        for isolation, results in runs.items():
            results.append(run(options.model, isolation))
    medians = {
        isolation: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for isolation, results in runs.items()
    }
    for isolation, found in medians.items():
        print(
            f"isolation {isolation:8} first token after {found['seconds']:.2f} s,"
            f" host {found['host'] / 1e6:.0f} MB, child {found['child'] / 1e6:.0f} MB"
        )
    alone, apart = medians["none"], medians["process"]
    print(f"process / none: time {apart['seconds'] / alone['seconds']:.2f}, memory", end=" ")
    print(f"{(apart['host'] + apart['child']) / alone['host']:.2f}")


if __name__ == "__main__":
    main()
