"""`lib-mlx bench`: figures of a model here and of another server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import lib_mlx
from lib_mlx.cli.measurement import ratio

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command, with one short run."""
    return subprocess.run(
        [sys.executable, "-m", "lib_mlx", "bench", *map(str, arguments), "--runs=1", "--words=5", "--tokens=4"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_against_another_server(crafted: Path, tmp_path: Path) -> None:
    """Both are measured in one run; the ratios are of what was measured, and drawn."""
    plot = tmp_path / "ratios.svg"
    with lib_mlx.load_model(str(crafted)) as model, model.start_server() as server:
        done = bench(crafted, "--against", f"{server.base_url}/v1", "--plot", plot, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    ours, theirs = told["medians"]["lib_mlx"], told["medians"]["the other"]
    assert set(told["ratios"]) == {"first token, s", "tokens/s", "tokens/s, 4 streams"}
    for name, value in told["ratios"].items():
        assert value == pytest.approx(ratio(name, ours[name], theirs[name]))
    assert told["memory_bytes"] > 10_000_000
    drawn = "".join(ET.fromstring(plot.read_text()).itertext())  # our own file
    assert server.base_url in drawn
    assert f"{told['ratios']['tokens/s']:.2f}" in drawn


def test_what_is_wrong(crafted: Path) -> None:
    """A server that is not there, and a picture of nothing, are told; nothing is drawn."""
    gone = bench(crafted, "--against", "http://127.0.0.1:9")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "the other does not answer" in gone.stderr
    assert "--against" in bench(crafted, "--plot", "x.svg").stderr
