"""How long `lib_mlx_server_status` takes: idle, during a load or a prefill, and while Python's lock is held.

    python -m benchmarks.status_time [--model smollm2]

A C host calls it thousands of times in each of these moments; the baseline is `lib_mlx_resume`, which has nothing to do
either but goes through Python.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from lib_mlx.installation import installation
from lib_mlx.models.store import resolve

SOURCE = Path(__file__).parent / "c/status_time.c"
BASELINE = "through Python"


def measure(model: Path) -> dict[str, list[float]]:
    """Return calls, median, 99th percentile and longest in microseconds for each moment."""
    found = installation()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "status_time"
        flags = shlex.split(f"{found.cflags} {found.libs}")
        command = [*shlex.split(os.environ.get("CC", "cc")), "-O2", "-D_GNU_SOURCE", str(SOURCE), *flags]
        subprocess.run([*command, "-pthread", "-ldl", "-o", str(program)], check=True)
        environment = {**os.environ, "LIB_MLX_HOME": sys.prefix}
        told = subprocess.run([program, model], capture_output=True, text=True, check=True, env=environment).stdout
    rows = [line.split("\t") for line in told.splitlines()]
    return {row[0]: [float(value) for value in row[1:]] for row in rows}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    rows = measure(resolve(parser.parse_args().model))
    baseline = rows[BASELINE][1]
    print(f"{'':20} {'calls':>7} {'median':>9} {'p99':>9} {'longest':>10}  {BASELINE} / this")
    for moment, (calls, median, p99, longest) in rows.items():
        print(f"{moment:20} {calls:7.0f} {median:6.1f} us {p99:6.1f} us {longest:7.1f} us  {baseline / median:.1f}")


if __name__ == "__main__":
    main()
