"""Services in the background, as `lib-mlx start` makes them: real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import httpx2
import openai
import psutil
import pytest

from lib_mlx.service.state import ServiceState, birth, is_alive, read_state, write_state
from tests.checkpoints import SCRIPTS
from tests.commands import ROOT, run_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Result(subprocess.CompletedProcess[str]):
    """What a command printed."""


@pytest.fixture
def state_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Folders of the test's own; whatever it has started is gone afterwards."""
    folder = tmp_path / "state"
    monkeypatch.setenv("LIB_MLX_STATE_DIR", str(folder))
    monkeypatch.setenv("LIB_MLX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield folder
    for path in folder.glob("*.json"):
        pid = json.loads(path.read_text())["pid"]
        if pid and psutil.pid_exists(pid) and "lib_mlx" in " ".join(psutil.Process(pid).cmdline()):
            psutil.Process(pid).kill()


@pytest.fixture
def run(state_dir: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command to its end, from a directory with no configuration."""
    assert state_dir

    return partial(run_command, folder=tmp_path)


def eventually(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Wait until something is so."""
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_life_of_a_service(run: Callable[..., subprocess.CompletedProcess[str]], crafted: Path) -> None:
    """Start returns when the model answers; status, ps, unload, load, logs, restart and stop do what they say."""
    started = run("start", crafted, "--port", 0, "--api-key", "auto").stdout
    lines = dict(line.strip().removeprefix("export ").split("=", 1) for line in started.splitlines()[1:])
    with openai.OpenAI(base_url=lines["OPENAI_BASE_URL"], api_key=lines["OPENAI_API_KEY"]) as client:
        answer = client.responses.create(model=crafted.name, input="hello")
    assert answer.output_text == SCRIPTS["hello"].text()
    assert "running" in run("status").stdout
    (told,) = json.loads(run("status", "--json").stdout)
    assert (told["status"], told["base_url"]) == ("running", lines["OPENAI_BASE_URL"].removesuffix("/v1"))
    assert told["health"] == "ok"
    assert "api_key" not in told
    assert run("ps").stdout.split()[:2] == [crafted.name, "ready"]
    assert "is unloaded" in run("unload", crafted.name).stdout
    assert run("ps").stdout == ""
    assert "is ready" in run("load", crafted.name).stdout
    assert "Already running" in run("start").stdout
    assert "serving" in run("logs").stdout.lower()
    before = read_state("default")
    assert "Restarted" in run("restart").stdout
    assert not is_alive(before)
    assert read_state("default").pid != before.pid
    assert run("ps").stdout.split()[:2] == [crafted.name, "ready"]
    assert run("stop").stdout == "Stopped.\n"
    assert run("status", code=1).stdout.split() == ["default", "stopped"]
    assert run("stop").stdout == "It was stopped.\n"
    assert "is stopped" in run("ps", code=1).stderr


def test_a_service_that_takes_no_requests(run: Callable[..., subprocess.CompletedProcess[str]], crafted: Path) -> None:
    """It runs, and the status says why it answers nothing: it is drained, or stands still."""
    run("start", crafted, "--port", 0)
    state = read_state("default")
    assert state.base_url is not None
    assert state.pid is not None
    httpx2.post(f"{state.base_url}/v1/drain").raise_for_status()
    assert run("status").stdout.endswith(f"(pid {state.pid}), draining\n")
    assert json.loads(run("status", "--json").stdout)[0]["health"] == "draining"
    os.kill(state.pid, signal.SIGSTOP)
    try:
        assert run("status").stdout.endswith(", not answering\n")
    finally:
        os.kill(state.pid, signal.SIGCONT)
    httpx2.delete(f"{state.base_url}/v1/drain").raise_for_status()
    assert run("status").stdout.endswith(f"(pid {state.pid})\n")


def test_a_service_whose_socket_is_gone(
    run: Callable[..., subprocess.CompletedProcess[str]], crafted: Path, tmp_path: Path
) -> None:
    """Commands that ask it say that it does not answer, and the status does."""
    uds = tmp_path / "socket"
    run("start", crafted, "--uds", uds)
    assert run("status").stdout.split("(pid ")[1].endswith(")\n")
    uds.unlink()
    assert run("status").stdout.endswith(", not answering\n")
    assert "does not answer" in run("ps", code=1).stderr


def test_two_services(run: Callable[..., subprocess.CompletedProcess[str]], crafted: Path) -> None:
    """Two of different names live beside each other on ports of their own."""
    run("start", crafted, "--port", 0)
    run("start", "--port", 0, "--name", "other")
    states = {one["name"]: one for one in json.loads(run("status", "--json").stdout)}
    assert {one["status"] for one in states.values()} == {"running"}
    assert states["default"]["base_url"] != states["other"]["base_url"]
    run("stop", "--name", "other")
    assert run("ps").stdout.split()[0] == crafted.name


def test_a_model_of_the_file(
    run: Callable[..., subprocess.CompletedProcess[str]], crafted: Path, tmp_path: Path
) -> None:
    """A name of the file means the model that the file has there, relative to it and with its options."""
    (tmp_path / "here").symlink_to(crafted)
    (tmp_path / "lib-mlx.toml").write_text('[models.small]\npath = "here"\ncontext_length = 77\n')
    run("start", "small", "--port", 0)
    state = read_state("default")
    assert httpx2.get(f"{state.base_url}/v1/models/small").json()["context_length"] == 77
    run("stop")


def test_why_it_does_not_start(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, state_dir: Path
) -> None:
    """A taken port, a model that is not there, a wrong option: what, how to fix it, the log's last lines."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = run("start", "--port", port, code=1)
        assert f"error: 127.0.0.1:{port} is taken." in failed.stderr
        assert "fix: Use another port" in failed.stderr
    assert run("status", code=1).stdout.split()[:2] == ["default", "failed"]
    failed = run("start", tmp_path / "nowhere", "--port", 0, code=3)
    assert "There is no model" in failed.stderr
    assert "The log's last lines:" in failed.stderr
    assert "--port: invalid value" in run("start", "--port", 70000, code=1).stderr
    assert "no name for a service" in run("start", "--name", "../x", code=1).stderr
    assert {path.suffix for path in state_dir.iterdir()} <= {".json", ".log", ".lock"}


def test_two_starts_at_once(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """One of them starts the service, the other finds it running; both return when it answers."""
    with ThreadPoolExecutor(2) as pool:
        said = [one.stdout for one in pool.map(lambda _: run("start", "--port", 0), range(2))]
    assert sorted(text.partition(":")[0] for text in said) == ["Already running", "Started"]
    assert said[0].partition(":")[2] == said[1].partition(":")[2]


def test_a_state_that_cannot_be_written(run: Callable[..., subprocess.CompletedProcess[str]], state_dir: Path) -> None:
    """Nothing is left running that nobody could stop."""
    (state_dir / "default.json").mkdir(parents=True)  # no file can take its place
    failed = run("start", "--port", 0, code=1)
    assert "default.json" in failed.stderr
    (state_dir / "default.json").rmdir()
    environments = [process.info["environ"] or {} for process in psutil.process_iter(["environ"])]
    mine = [one for one in environments if one.get("LIB_MLX_STATE_DIR") == str(state_dir)]
    assert mine == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash(run: Callable[..., subprocess.CompletedProcess[str]], crafted: Path, number: signal.Signals) -> None:
    """Status tells that the process is gone, with the log's end; start begins a new one."""
    run("start", crafted, "--port", 0)
    pid = read_state("default").pid
    assert pid is not None
    os.kill(pid, number)
    eventually(lambda: read_state("default").status == "crashed")
    told = run("status", code=1).stdout
    assert f"process {pid} is gone" in told
    assert "Serving at" in told or "serv" in told.lower()
    assert "Started" in run("start", crafted, "--port", 0).stdout


def test_a_pid_that_belongs_to_somebody_else(
    run: Callable[..., subprocess.CompletedProcess[str]], state_dir: Path
) -> None:
    """A state whose process id was given to another process is a crash, and stop leaves that process alone."""
    with subprocess.Popen(["sleep", "60"]) as other:
        began = birth(other.pid)
        assert began is not None
        write_state(ServiceState("default", "running", other.pid, began - 1000, "http://127.0.0.1:1"))
        assert read_state("default").status == "crashed"
        run("stop")
        assert other.poll() is None
        other.kill()
    assert run("status", code=1).stdout.split() == ["default", "stopped"]
    assert (state_dir / "default.json").stat().st_mode & 0o777 == 0o600


def test_a_service_that_does_not_stop(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """It is killed after the deadline."""
    (tmp_path / "lib-mlx.toml").write_text("[service]\nstop_timeout_s = 0.5\n")
    run("start", "--port", 0)
    state = read_state("default")
    assert state.pid is not None
    os.kill(state.pid, signal.SIGSTOP)
    begun = time.monotonic()
    assert run("stop").stdout == "Stopped.\n"
    assert time.monotonic() - begun < 5
    assert not is_alive(state)


def test_serve_in_the_foreground(state_dir: Path, crafted: Path, tmp_path: Path) -> None:
    """One line of JSON when it is ready; Ctrl-C ends it with status 0, its streams with their terminal event."""
    command = [sys.executable, "-m", "lib_mlx", "serve", str(crafted), "--port", "0", "--ready-json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        ready = json.loads(server.stdout.readline())
        assert ready["pid"] == server.pid
        loop = {"model": crafted.name, "messages": [{"role": "user", "content": "loop"}], "stream": True}
        with httpx2.stream("POST", f"{ready['base_url']}/v1/chat/completions", json=loop) as stream:
            pieces = stream.iter_raw()
            next(pieces)
            server.send_signal(signal.SIGINT)
            rest = b"".join(pieces)
        assert rest.endswith(b"data: [DONE]\n\n")
        assert server.wait(10) == 0
        assert (server.stdout.read(), server.stderr.read()) == ("", "")
    assert not state_dir.exists()


def test_the_log_is_rotated(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, state_dir: Path
) -> None:
    """A log that has grown too large is begun anew, and one old file is kept."""
    (tmp_path / "lib-mlx.toml").write_text('[service]\nlog_level = "debug"\nlog_bytes = 65536\n')
    run("start", "--port", 0)
    url = read_state("default").base_url
    with httpx2.Client() as client:
        for _ in range(2000):
            client.get(f"{url}/livez?{'x' * 100}")
    run("stop")
    assert (state_dir / "default.log.1").stat().st_size > 60_000
    assert (state_dir / "default.log").stat().st_size < 70_000
