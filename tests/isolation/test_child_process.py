"""The process of an isolated model, started by hosts of every kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.config import LoadConfig
from lib_mlx.runtime import Runtime
from tests.isolation.test_isolated_handle import childs_pid
from tests.server.test_server import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = """
import os, signal, sys, threading, time
{state}
from lib_mlx.config import LoadConfig, ServerConfig
from lib_mlx.runtime import Runtime
runtime = Runtime()
for number in (signal.SIGTERM, signal.SIGINT):
    handle = runtime.load(LoadConfig(model_path=sys.argv[1], isolation="process")).handle
    runtime.start_server(handle, ServerConfig())
    asking = threading.Event()
    def ask():
        while not asking.is_set():
            try:
                runtime.resume(handle)
            except Exception:
                return
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    os.kill(runtime._find(handle).pid, number)
    until = time.monotonic() + 10
    while runtime.status(handle).model.status != "failed" and time.monotonic() < until:
        time.sleep(0.01)
    asking.set()
    report.write((runtime.status(handle).model.error or {{"message": "alive"}})["message"] + "\\n")
    runtime.unload(handle)
report.close()
"""


REAPING = """
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
"""


def told(state: str, crafted: Path, report: Path) -> list[str]:
    """What a host in that state learns of children that were told to end; it prints nothing."""
    code = HOST.format(state=f"report = open({str(report)!r}, 'w')\n{state}")
    done = subprocess.run(
        [sys.executable, "-c", code, str(crafted)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return report.read_text().splitlines()


@pytest.mark.parametrize(
    "state",
    [
        "",
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD})",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    ],
    ids=["plain", "blocked", "ignored", "SIGPIPE"],
)
def test_the_hosts_signals(crafted: Path, tmp_path: Path, state: str) -> None:
    """A child can be ended by a signal whatever its host blocks or ignores; that does not end the host."""
    messages = told(state, crafted, tmp_path / "report")
    assert [name in message for name, message in zip(("SIGTERM", "SIGINT"), messages, strict=True)] == [True, True]


@pytest.mark.parametrize(
    "state",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        REAPING,
    ],
    ids=["ignores", "reaps"],
)
def test_a_host_that_takes_the_exit_status(crafted: Path, tmp_path: Path, state: str) -> None:
    """It learns of the death as others do, and is not told a status that was never seen."""
    for message in told(state, crafted, tmp_path / "report"):
        assert message.startswith("The engine's process has ended: ")
        assert "exit status" not in message


@pytest.mark.parametrize("closed", [(0,), (0, 1, 2)])
def test_a_host_with_closed_streams(crafted: Path, tmp_path: Path, closed: tuple[int, ...]) -> None:
    """Descriptors that take the place of its standard streams work as others."""
    state = "\n".join(f"os.close({number})" for number in closed)
    assert len(told(f"report = open(os.dup(report.fileno()), 'w')\n{state}", crafted, tmp_path / "report")) == 2


@pytest.mark.parametrize("executable", ["", "/bin/true", None])
def test_a_host_that_embeds_python(crafted: Path, tmp_path: Path, executable: str | None) -> None:
    """Its own executable, which Python may take for its own, is not run in the child's place."""
    messages = told(f"sys.executable = {executable!r}", crafted, tmp_path / "report")
    assert [name in message for name, message in zip(("SIGTERM", "SIGINT"), messages, strict=True)] == [True, True]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Processes that the host forks just as it starts another: they have all that it has open."""
    made: list[int] = []

    class Forking(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            if (fork := os.fork()) == 0:
                signal.pause()
                os._exit(0)
            made.append(fork)
            super().__init__(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", Forking)
    yield made
    for fork in made:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)


def test_a_host_that_forks_meanwhile(forks: list[int], crafted: Path) -> None:
    """A fork that has the channel's other end does not hide the child's death."""
    runtime = Runtime()
    handle = runtime.load(LoadConfig(model_path=str(crafted), isolation="process")).handle
    os.kill(childs_pid(runtime, handle), signal.SIGKILL)
    eventually(lambda: runtime.status(handle).model.status == "failed")
    runtime.shutdown()
    assert forks
