"""Ranks that end, or are ended, at every stage: what clients and the terminal get, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx2
import openai
import psutil
import pytest

from tests.service.divided import (
    PROMPTS,
    ROOT,
    Served,
    ask,
    begin,
    nothing_left,
    quantised,
    start,
    stop,
    stream,
    write_hosts,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank(served: Served, alone: Callable[..., str], rank: int) -> None:
    """A rank that is killed ends the requests; the service comes back at the same address, and says so."""
    before = served.ranks()
    chunks = stream(served.client, PROMPTS[0], max_tokens=4000)
    next(chunks)
    before[rank].kill()
    with pytest.raises((openai.APIError, httpx2.HTTPError)) as caught:
        list(chunks)
    if rank:
        assert caught.value.code == "engine_died"
    psutil.wait_procs(before.values(), 10)
    served.until_healthy()
    assert not set(before.values()) & set(served.ranks().values())
    assert ask(served.client, PROMPTS[3]) == alone(PROMPTS[3])
    assert "are started again" in served.errors.read_text()


def test_a_lost_launcher(served: Served, alone: Callable[..., str]) -> None:
    """When MLX's launcher is killed, with nothing to do, its ranks end with it, and all are started again."""
    before = served.everyone()
    psutil.Process(served.process.pid).children()[0].kill()
    assert not psutil.wait_procs(before, 10)[1]
    served.until_healthy()
    assert ask(served.client, PROMPTS[3]) == alone(PROMPTS[3])


def test_a_slow_rank(served: Served, alone: Callable[..., str]) -> None:
    """A rank that does nothing for some seconds delays an answer, and that is all."""
    chunks = stream(served.client, PROMPTS[0], max_tokens=400)
    said = next(chunks).choices[0].delta.content or ""
    rank = served.ranks()[1]
    rank.suspend()
    time.sleep(3)
    rank.resume()
    said += "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == alone(PROMPTS[0], max_tokens=400)


def test_a_stop_in_mid_stream(tmp_path: Path, model: Path) -> None:
    """A stop ends the streams with their terminal event, also if a rank is lost at that moment."""
    served = start(tmp_path, model, 2, "--port", "0")
    everyone, ranks = served.everyone(), served.ranks()
    chunks = stream(served.client, PROMPTS[0], max_tokens=4000)
    next(chunks)
    served.process.terminate()
    with pytest.raises(openai.APIError) as caught:
        list(chunks)
    ranks[1].kill()
    assert caught.value.code == "shutting_down"
    assert served.process.wait(10) == 0
    nothing_left(served, everyone)
    assert "are started again" not in served.errors.read_text()
    served.client.close()


def test_a_stop_at_the_start(tmp_path: Path, model: Path) -> None:
    """Ctrl-C while ranks are being started ends them at once."""
    served = begin(tmp_path, model, write_hosts(tmp_path, 2), "--port", "0")
    served.until_begun(2)
    begun = time.monotonic()
    stop(served, signal.SIGINT)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_does_not_start(tmp_path: Path, model: Path, rank: int) -> None:
    """A rank that ends before it is one ends the service, which says which it was; the others do not wait for it."""
    served = begin(tmp_path, model, write_hosts(tmp_path, 2), "--port", "0")
    everyone = served.everyone()
    served.until_begun(2)[rank].kill()
    assert "The ranks have ended: rank" in served.failure()
    nothing_left(served, everyone)


def test_nobody_outlives_the_service(tmp_path: Path, model: Path, alone: Callable[..., str]) -> None:
    """When the command is killed its ranks end, three of them here, and leave no files."""
    served = start(tmp_path, model, 3, "--port", "0")
    assert ask(served.client, PROMPTS[0]) == alone(PROMPTS[0])
    everyone = served.everyone()
    served.process.kill()
    served.process.wait()
    nothing_left(served, everyone)
    served.client.close()


def test_nobody_waits_for_a_service_that_is_killed(tmp_path: Path, model: Path) -> None:
    """When the command is killed before the ranks are ready, they end."""
    served = begin(tmp_path, model, write_hosts(tmp_path, 2), "--port", "0")
    served.until_begun(2)
    everyone = served.everyone()
    served.process.kill()
    served.process.communicate()
    assert not psutil.wait_procs(everyone, 10)[1]


def test_models_that_cannot_be_divided(tmp_path: Path, model: Path) -> None:
    """A model whose heads or widths cannot be divided is refused, and nothing is left running."""
    served = begin(tmp_path, model, write_hosts(tmp_path, 4), "--port", "0")
    failure = served.failure()
    assert "The model has 6 attention heads, which cannot be divided among 4 ranks." in failure
    assert "divided among 2, 3, 6 hosts" in failure
    odd = quantised(model, tmp_path / "odd")  # three groups wide
    served = begin(tmp_path, odd, write_hosts(tmp_path, 2), "--port", "0")
    assert "The model's layers cannot be divided among 2 ranks" in served.failure()


def ssh(folder: Path, script: str) -> dict[str, str]:
    """Return an environment in which `script` is ssh: `$host` is who is called, `$command` what is to be run there."""
    program = folder / "bin/ssh"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done\nhost=$1 command=$2\n{script}\n"
    )
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def two_hosts(folder: Path) -> Path:
    """Write a file of hosts, the second of which is reached by ssh."""
    path = folder / "hosts.json"
    address = {"ips": ["127.0.0.1"]}
    path.write_text(json.dumps({"backend": "ring", "hosts": [{"ssh": "mac1", **address}, {"ssh": "mac2", **address}]}))
    return path


def test_a_host_behind_ssh(tmp_path: Path, model: Path, alone: Callable[..., str]) -> None:
    """Ranks on other hosts are started by ssh, the first one is not."""
    environment = ssh(tmp_path, f'echo "$host" >>{tmp_path}/called; exec bash -c "$command"')
    served = begin(tmp_path, model, two_hosts(tmp_path), "--port", "0", environment=environment)
    served.until_ready()
    assert ask(served.client, PROMPTS[0]) == alone(PROMPTS[0])
    assert (tmp_path / "called").read_text() == "mac2\n"
    stop(served)


def test_a_host_that_cannot_be_reached(tmp_path: Path, model: Path) -> None:
    """A host that ssh cannot reach is named; while ssh still tries, Ctrl-C is prompt."""
    environment = ssh(tmp_path, "exit 255")
    served = begin(tmp_path, model, two_hosts(tmp_path), "--port", "0", environment=environment)
    assert "rank 1 (mac2) exited with code 255" in served.failure()
    (tmp_path / "bin/ssh").write_text("#!/bin/sh\nexec sleep 100\n")
    served = begin(tmp_path, model, two_hosts(tmp_path), "--port", "0", environment=environment)
    served.until_begun(1)
    begun = time.monotonic()
    stop(served, signal.SIGINT)
    assert time.monotonic() - begun < 5


def test_restarts_are_counted(tmp_path: Path, model: Path) -> None:
    """`start --hosts` returns when the model is ready; `status` tells how often its ranks were started again."""
    environment = os.environ | {
        "LIB_MLX_STATE_DIR": str(tmp_path / "state"),
        "LIB_MLX_RANK_DEVICE": "cpu",
        "PYTHONPATH": str(ROOT),
    }

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "lib_mlx", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
        assert arguments[0] == "status" or done.returncode == 0, done.stderr
        return done.stdout

    try:
        run("start", "--port", "0", "--hosts", str(write_hosts(tmp_path, 2)), str(model))
        (before,) = json.loads(run("status", "--json"))
        assert (before["status"], before["restarts"]) == ("running", 0)
        everyone = psutil.Process(before["pid"]).children(recursive=True)
        Served(psutil.Process(before["pid"]), "", tmp_path).ranks()[1].kill()
        psutil.wait_procs(everyone, 10)
        until = time.monotonic() + 20
        while (state := json.loads(run("status", "--json"))[0])["status"] != "running":
            assert time.monotonic() < until, state
        assert (state["restarts"], state["base_url"]) == (1, before["base_url"])
        assert "ranks started again: 1" in run("status")
    finally:
        run("stop")


@pytest.mark.slow
def test_a_rank_that_hangs(served: Served, alone: Callable[..., str]) -> None:
    """A rank that is not heard of for ten seconds counts as lost, though its process and its connections stand."""
    before = served.ranks()
    chunks = stream(served.client, PROMPTS[0], max_tokens=4000)
    next(chunks)
    before[1].suspend()
    begun = time.monotonic()
    with pytest.raises(openai.APIError) as caught:
        list(chunks)
    assert caught.value.code == "engine_died"
    assert 5 < time.monotonic() - begun < 20
    psutil.wait_procs(before.values(), 20)
    served.until_healthy()
    assert ask(served.client, PROMPTS[3]) == alone(PROMPTS[3])
    assert not any(rank.is_running() for rank in before.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpx2: of a connect that fails
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="network namespaces need root and unshare")
def test_a_cut_link(tmp_path: Path, model: Path) -> None:
    """Ranks that no longer hear each other end the requests within seconds, and serve again when the link is back."""
    if subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], check=False).returncode:
        pytest.skip("network namespaces do not work here")
    uds = tmp_path / "socket"
    inside = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')
    served = start(tmp_path, model, 2, "--uds", str(uds), prefix=inside)
    link = ["nsenter", "--net", "--target", str(served.process.pid), "ip", "link", "set", "lo"]
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(uds)), base_url=served.base_url, timeout=40) as client:
        body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 4000, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            subprocess.run([*link, "down"], check=True)
            cut = time.monotonic()
            assert "engine_died" in "".join(lines)
            assert time.monotonic() - cut < 20
        subprocess.run([*link, "up"], check=True)
        until = time.monotonic() + 60
        while True:
            try:  # until then there is the end of the old one, or none
                done = client.post("/v1/chat/completions", json=body | {"stream": False, "max_tokens": 4})
                if done.status_code == 200:
                    break
            except httpx2.HTTPError:
                pass
            assert time.monotonic() < until, served.errors.read_text()
            time.sleep(0.2)
    stop(served)
