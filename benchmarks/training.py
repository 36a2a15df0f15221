"""How fast a step of fine-tuning is, against `mlx_lm.lora`: the same LoRA, batches and weights (float32), in turn.

    python -m benchmarks.training [--model smollm2] [--steps 4] [--layers 4]

Prints the median time of a step, as each program's lines come, and the ratio.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib_mlx.config import parse_config
from lib_mlx.conversion.config import ConvertConfig
from lib_mlx.conversion.conversion import convert

CITIES = ("Oslo", "Lima", "Quito", "Bern", "Accra", "Hanoi", "Riga", "Sofia")
RATE, RANK, BATCH = "1e-4", "8", "4"


_COLOURS = re.compile(r"\x1b\[[\d;]*m")


def intervals(command: list[str], step: str) -> list[float]:
    """Run `command`; return the times between its lines that match `step`, whichever stream they are in."""
    times = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if re.match(step, _COLOURS.sub("", line).strip()):
                times.append(time.monotonic())
    if process.returncode or len(times) < 3:
        raise SystemExit("".join(seen))
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {"prompt": f"What is the code of {city}?", "completion": f"The code of {city} is {7 * at}."}
            for at, city in enumerate(CITIES * 4)
        ]
        for part in ("train", "valid"):
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        weights = {"model_path": options.model, "output_path": str(folder / "model"), "dtype": "float32"}
        model = str(convert(parse_config(ConvertConfig, {**weights, "dequantize": True})).path)
        steps, layers = str(options.steps), str(options.layers)
        ours = [sys.executable, "-m", "lib_mlx", "train", model, "--data", str(folder / "train.jsonl")]
        ours += ["--output", str(folder / "ours"), "--steps", steps, "--layers", layers, "--rank", RANK]
        ours += ["--batch-size", BATCH, "--learning-rate", RATE]
        theirs = [sys.executable, "-m", "mlx_lm", "lora", "--train", "--model", model, "--data", str(folder)]
        theirs += ["--adapter-path", str(folder / "theirs"), "--iters", steps, "--num-layers", layers, "--mask-prompt"]
        theirs += ["--batch-size", BATCH, "--learning-rate", RATE, "--steps-per-report", "1", "--val-batches", "1"]
        measured = {
            "lib_mlx": statistics.median(intervals(ours, r"step \d")),
            "mlx_lm.lora": statistics.median(intervals(theirs, r"\d+ +[\d.]+ [▼▲]")),
        }
    for who, seconds in measured.items():
        print(f"{who:12} {seconds:6.2f} s a step, ratio {measured['mlx_lm.lora'] / seconds:.1f}")


if __name__ == "__main__":
    main()
