"""Time from process start to the first text of an answer: lib_mlx in a C and in a Python host, and mlx_lm.generate.

    python -m benchmarks.cold_start [--runs 5] [--model smollm2] [--prompt TEXT]

Each is a new process, in turn, timed from its start to the first byte of answer on its standard output. The C host
is examples/c/chat (left out where it is not built), the Python host a few lines that print what `Model.stream`
gives. On the CPU half precision is so slow that mlx_lm gets a copy of the checkpoint whose norms are float32 (see
cpu_speed). Then it is told where the Python host's time went.
"""

from __future__ import annotations

import argparse
import ast
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WIDEN = "import sys, pathlib, benchmarks.cpu_speed as c; c.widened_copy(*map(pathlib.Path, sys.argv[1:]))"
ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300
HOST = """
import sys, time
seen = [("interpreter", time.monotonic())]
import lib_mlx
from lib_mlx.runtime import get_runtime
seen.append(("import lib_mlx", time.monotonic()))
stage = []
def note(handle, status):
    if status and status.model.stage and stage[-1:] != [status.model.stage]:
        if stage:
            seen.append((stage[-1], time.monotonic()))
        stage.append(status.model.stage)
get_runtime().subscribe(note)
model = lib_mlx.load_model(sys.argv[1])
seen.append((stage[-1], time.monotonic()))
for event in model.stream(sys.argv[2], max_tokens=8):
    if isinstance(event, lib_mlx.TextDelta):
        break
seen.append(("first token", time.monotonic()))
print(event.text, end="", flush=True)
print(repr(seen), file=sys.stderr, flush=True)
"""
MARKER = b"==========\n"  # what mlx_lm.generate prints before its answer


def first_byte(command: list[str], errors: Path, after: bytes = b"") -> tuple[float, float]:
    """Run a command; return when it was started and when its output had a byte behind `after` (`time.monotonic`)."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "LIB_MLX_HOME": sys.prefix}
    begun = time.monotonic()
    with (
        errors.open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=environment) as process,
    ):
        assert process.stdout is not None
        limit = threading.Timer(TIMEOUT_S, process.kill)
        limit.start()
        read = b""
        while (at := read.find(after)) < 0 or len(read) == at + len(after):
            byte = os.read(process.stdout.fileno(), 1)
            if not byte:
                break
            read += byte
        ended = time.monotonic()
        process.stdout.read()
        limit.cancel()
    if process.returncode or not read:
        raise SystemExit(f"{command[:4]} failed with status {process.returncode}:\n{errors.read_text()}")
    return begun, ended


def breakdown(runs: list[list[tuple[str, float]]]) -> str:
    """Say how long each stage of the Python host took, by the medians."""
    parts = []
    for index, (name, _) in enumerate(runs[0]):
        if index:
            parts.append(f"{name} {statistics.median(run[index][1] - run[index - 1][1] for run in runs):.2f}")
    return ", ".join(parts)


def measure(options: argparse.Namespace, model: str, folder: str) -> None:
    """Run everything in turn and print it."""
    errors, prompt = Path(folder, "stderr"), options.prompt
    mlx_lm = [sys.executable, "-m", "mlx_lm", "generate", "--model", f"{folder}/float32", "--prompt", prompt]
    commands = {
        "C host": [str(ROOT / "examples/c/chat"), model, prompt],
        "Python host": [sys.executable, "-c", HOST, model, prompt],
        "mlx_lm.generate": [*mlx_lm, "--max-tokens", "8"],
    }
    if not Path(commands["C host"][0]).exists():
        del commands["C host"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    stages = []
    for run in range(options.runs):
        for name, command in commands.items():
            begun, ended = first_byte(command, errors, MARKER if name == "mlx_lm.generate" else b"")
            seconds[name].append(ended - begun)
            if name == "Python host":
                stages.append([("start", begun), *ast.literal_eval(errors.read_text().splitlines()[-1])])
        print(
            f"run {run + 1}: " + ", ".join(f"{name} {found[-1]:.2f} s" for name, found in seconds.items()), flush=True
        )
    theirs = seconds["mlx_lm.generate"]
    for name, ours in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        print(f"{name:16} {statistics.median(ours):.2f} s" + ("" if ours is theirs else f", {ratio:.2f} times as fast"))
    print(f"the Python host's seconds: {breakdown(stages)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt", default="What is the capital of France?")
    options = parser.parse_args()
    from lib_mlx.models.store import resolve

    model = str(resolve(options.model))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", WIDEN, model, folder], check=True)  # MLX ends with that process
        measure(options, model, folder)


if __name__ == "__main__":
    main()
