"""The interpreter ends cleanly, whatever the engine is doing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HOST = """
import contextlib, sys, threading, time
import lib_mlx

def generate():
    with contextlib.suppress(lib_mlx.LibMlxError):
        list(model.stream("loop"))

path, moment, delay = sys.argv[1], sys.argv[2], float(sys.argv[3])
if moment == "loading":
    model = lib_mlx.load_model(path, wait=False)
    time.sleep(delay)
    sys.exit(3)
model = lib_mlx.load_model(path)
if moment == "serving":
    model.start_server()
if moment == "unloaded":
    model.unload()
else:
    for _ in range(3):
        threading.Thread(target=generate, daemon=True).start()
    time.sleep(delay)
sys.exit(3)
"""
MOMENTS = ["loading", "generating", "serving", "unloaded"]


def leave(checkpoint: Path, moment: str, delay: float) -> tuple[int, str]:
    """Run a host that ends at `moment`; return its exit code and what it printed to stderr."""
    command = [sys.executable, "-c", HOST, str(checkpoint), moment, str(delay)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return ran.returncode, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_exit_code_is_the_hosts(crafted: Path, moment: str) -> None:
    """No abort, no message and no hang, a little later each time."""
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda number: leave(crafted, moment, 0.013 * number), range(4)))
    assert ends == [(3, "")] * 4
