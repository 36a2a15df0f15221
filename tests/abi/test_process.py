"""What belongs to the host process: its signals, standard streams, environment, children and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.abi.conftest import expect, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.abi.conftest import Programs

PROMPT_S = 3.5
"""The header promises at most three seconds for the exit itself."""


def test_process_state_is_unchanged(programs: Programs, crafted: Path) -> None:
    """What belongs to the process and its threads survives a model's life.

    Environment, working directory, locale, limits, umask, signal handlers, standard streams; and signal mask, rounding
    mode, exception masks and treatment of denormals of the calling thread, of another one and of those made later.
    """
    programs.check("unchanged", crafted)


@pytest.mark.parametrize("language", ["C", "C.UTF-8"])
def test_c_locale_is_unchanged(programs: Programs, language: str) -> None:
    """A host that never called setlocale() stays in the C locale, whatever its environment would have it."""
    expect(run(["env", "-i", f"LANG={language}", programs.build("unchanged")]))


def test_sigint_ends_the_host(programs: Programs, crafted: Path) -> None:
    """Ctrl-C keeps its default effect with a server running: Python installs no handler."""
    programs.check("sigint", crafted, code=-signal.SIGINT)


def test_vanished_clients_do_not_end_the_host(programs: Programs, crafted: Path) -> None:
    """Clients that close their connections, mid-answer or mid-stream, raise no SIGPIPE in the host."""
    programs.check("sigpipe", crafted)


def test_closed_stdio(programs: Programs, crafted: Path, tmp_path: Path) -> None:
    """A host without standard streams works, and what it prints later reaches no socket of the library's."""
    report = tmp_path / "report"
    programs.check("closed_stdio", report, crafted)
    assert report.read_text() == "done\n"


def test_stderr_is_lent_for_debugging(programs: Programs, library: Path) -> None:
    """LIB_MLX_DEBUG shows Python's messages on stderr, never on stdout."""
    script = "import sys; print('from python'); print('more', file=sys.stderr)"
    site = library.parent  # the library starts Python; libpython is global afterwards
    assert site.is_dir()
    result = programs.run("run_python", script, env={"LIB_MLX_DEBUG": "1"})
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "from python\nmore\n"
    expect(programs.run("run_python", script))


def test_python_cannot_change_the_environment(programs: Programs) -> None:
    """Python code that sets os.environ does not call setenv(), which would race with the host's getenv()."""
    programs.check("run_python", "import os; os.environ['LIB_MLX_PROBE'] = '1'; del os.environ['PATH']")


def test_forked_child(programs: Programs, crafted: Path) -> None:
    """A forked child gets `forked` from every function at once, exits freely, and the parent goes on."""
    programs.check("forked", crafted)


@pytest.mark.alone
@pytest.mark.parametrize("moment", ["starting", "started", "loading", "serving", "generating", "stuck"])
def test_exit_is_prompt_and_keeps_its_code(programs: Programs, crafted: Path, moment: str) -> None:
    """exit(7) ends the process with 7, soon, whatever the library is doing."""
    program = programs.build("exiting")
    began = time.monotonic()
    result = run([program, moment, crafted], env=dict(os.environ))
    expect(result, 7)
    assert time.monotonic() - began < PROMPT_S + _time_to_serve(moment)


@pytest.mark.alone
@pytest.mark.parametrize("moment", ["starting", "started", "loading", "serving", "generating"])
def test_exit_with_an_isolated_model(programs: Programs, crafted: Path, moment: str) -> None:
    """So it does with engine and server in a process of their own, which is gone soon after."""
    began = time.monotonic()
    with subprocess.Popen([programs.build("exiting"), moment, crafted, '"isolation": "process",']) as host:
        assert host.wait(30) == 7
    assert time.monotonic() - began < PROMPT_S + _time_to_serve(moment)
    until = time.monotonic() + 5
    while engines_of(host.pid):
        assert time.monotonic() < until
        time.sleep(0.02)


def engines_of(host: int) -> list[psutil.Process]:
    """The processes that a host has made for its models, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any("lib_mlx.child" in part for part in command) and command[-1] == str(host):
            found.append(process)
    return found


def _time_to_serve(moment: str) -> float:
    # Loading imports MLX and transformers first, on two cores with other tests beside.
    return 15.0 if moment in {"serving", "generating"} else 0.0
