"""The comparison's table, its client and its way of ending servers; the servers themselves are not run here."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.compare import report
from benchmarks.compare.client import Answer, ask, is_healthy
from benchmarks.compare.measures import MEASURES, Sizes, overhead, together
from benchmarks.compare.peers import Peer, install, serve

ROOT = Path(__file__).resolve().parents[2]
RESULTS: dict[str, Any] = json.loads((ROOT / "benchmarks/results/compare.json").read_text())


def test_the_table_in_the_docs_is_that_of_the_committed_results() -> None:
    """docs/performance.md is what `--write-docs` makes of benchmarks/results/compare.json."""
    docs = (ROOT / "docs/performance.md").read_text()
    assert report.in_docs(docs, RESULTS) == docs


def test_an_aim_is_missed_or_met_in_the_direction_that_counts() -> None:
    """More tokens and fewer seconds are better; what was not measured is said so."""
    runs = {"lib_mlx": [{"prefill_tokens_s": 30, "overhead_ms": 2}], "mlx_lm.server": [{"prefill_tokens_s": 10}]}
    runs["mlx_vlm.server"] = [{"overhead_ms": 4}]
    about = {"date": "today", "machine": "this", "model": "m", "count": 1, "missing": {"llama-server": "no compiler"}}
    table = report.table({**about, "runs": runs})
    assert "| prefill, tokens/s | 30 | 10 |  | mlx_lm.server: 15, 3.0 (missed) |" in table
    assert "| the better MLX server: 2, 2.0 |" in table
    assert "| llama-server: 0.67, not measured |" in table
    assert "Not measured: llama-server: no compiler." in table


def test_the_picture(tmp_path: Path) -> None:
    """It names each server and each figure that was measured."""
    report.draw(RESULTS, tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert all(name in text for name in RESULTS["runs"])
    assert "start to ready" in text


def test_tokens_are_counted_while_all_streams_run() -> None:
    """Until the last has begun, and once the first has ended, nothing counts."""
    early = Answer(0.0, [float(moment) for moment in range(11)])
    late = Answer(0.0, [5.0 + moment for moment in range(11)])
    assert together([early, late]) == 2.0


def test_a_server_is_killed_with_its_children(tmp_path: Path) -> None:
    """Nothing is left of it, whatever it started."""
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '99']); time.sleep(99)"
    peer = Peer("sleeper", (), ("{python}", "-c", code), "stored")
    with serve(peer, install(peer, tmp_path), tmp_path, tmp_path / "log") as server:
        while len(tree := server._tree()) < 2:
            time.sleep(0.01)
        assert server.running
        assert server.memory_bytes()[0] > 0
    assert not psutil.wait_procs(tree, timeout=5)[1]


@pytest.mark.slow
def test_every_measure_of_a_small_model(crafted: Path, tmp_path: Path) -> None:
    """Each figure of the table is measured of lib_mlx's own server."""
    from benchmarks.compare.peers import PEERS

    sizes = Sizes(prompt=64, read=64, answer=8, long_prompt=256, limit_s=30)

    async def measure(server: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for function in (*MEASURES.values(), overhead):
            async with asyncio.timeout(sizes.limit_s):
                found |= await function(server, sizes)
        return found

    with serve(PEERS[0], Path(sys.executable), crafted, tmp_path / "log") as server:
        found = asyncio.run(measure(server))
    assert {figure.key for figure in report.FIGURES} <= {*found}
    assert all(value > 0 for value in found.values())


def test_a_refusal_is_an_error() -> None:
    """A status other than 200 does not pass for an empty answer, and no server is not healthy."""

    async def check() -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            assert not await is_healthy(port)
            with pytest.raises(RuntimeError, match="503"):
                await ask(port, "x", 1)
        assert not await is_healthy(port)

    asyncio.run(check())
