"""What a call does with its arguments and its thread."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path

    from tests.abi.conftest import Programs


def test_bad_inputs(programs: Programs) -> None:
    """Every bad configuration and handle is answered with a JSON error of the right code."""
    programs.check("inputs")


def test_first_calls_race(programs: Programs) -> None:
    """Eight threads that make the first call at once start one Python and all get their answers."""
    programs.check("race")


def test_small_stack(programs: Programs, crafted: Path) -> None:
    """A thread with a 64 KiB stack may make any call, with JSON as deep as the parser allows."""
    programs.check("small_stack", crafted)


def test_cancelled_thread(programs: Programs) -> None:
    """pthread_cancel() on a thread inside a call takes effect after it and leaves no lock behind."""
    programs.check("cancelled_thread")


def test_life_of_a_model(programs: Programs, crafted: Path) -> None:
    """Load, serve, suspend, resume, stop, unload and shut down answer as the header says."""
    programs.check("life", crafted)


def test_life_of_an_isolated_model(programs: Programs, crafted: Path) -> None:
    """The same, with engine and server in a process of their own."""
    programs.check("life", crafted, '"isolation": "process",')


def test_a_death_in_isolation(programs: Programs, crafted: Path) -> None:
    """The engine's process crashes in mid-stream: the host goes on, is told by status and server, and loads again."""
    programs.check("isolated", crafted)


def test_nothing_outlives_the_host(programs: Programs, crafted: Path) -> None:
    """A host that is killed takes the engine's process with it."""
    with subprocess.Popen([programs.build("isolated"), crafted, "stay"]) as host:
        until = time.monotonic() + 20
        while not (children := psutil.Process(host.pid).children()) or not children[0].net_connections():
            assert time.monotonic() < until
            time.sleep(0.05)
        host.kill()
        assert psutil.wait_procs(children, timeout=5)[1] == []


def test_status_without_pythons_lock(programs: Programs, crafted: Path) -> None:
    """lib_mlx_server_status answers while somebody holds Python's lock and does not let go."""
    programs.check("status_without_gil", crafted)


def test_status_during_a_load(programs: Programs, crafted: Path) -> None:
    """lib_mlx_server_status answers at once while a load imports and reads; microseconds but for scheduling."""
    result = programs.run("status_during_load", crafted)
    assert result.returncode == 0, result.stderr
    polls, longest_us = map(int, result.stdout.split())
    assert polls > 10
    assert longest_us < 100_000


def test_cycles_leave_nothing(programs: Programs, crafted: Path) -> None:
    """Fifty starts and stops, and repeated loads and unloads, leave no thread and no descriptor behind."""
    result = programs.run("cycles", crafted)
    assert result.returncode == 0, result.stdout + result.stderr
