"""A model that is divided among processes of this machine over MLX's ring: real inference, real HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import psutil
import pytest

import lib_mlx
from tests.checkpoints.tiny import build_tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["hello there", "once upon a time " * 12, "def f(x):", "one two three four five six seven " * 30]


@dataclass
class Served:
    """`lib-mlx serve --hosts` as a process."""

    process: subprocess.Popen[str]
    base_url: str
    errors: Path

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key="-", max_retries=0, timeout=40)

    def ranks(self) -> dict[int, psutil.Process]:
        """Return its ranks' processes by their numbers."""
        return {
            int(child.environ()["MLX_RANK"]): child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if child.status() != psutil.STATUS_ZOMBIE and "MLX_RANK" in child.environ()
        }

    def until_healthy(self) -> None:
        """Wait for an answer."""
        until = time.monotonic() + 30
        while True:
            try:
                self.client.models.list()
            except openai.APIError:
                assert time.monotonic() < until, self.errors.read_text()
                time.sleep(0.1)
            else:
                return


def start(folder: Path, model: Path, ranks: int, *options: str, prefix: tuple[str, ...] = ()) -> Served:
    """Serve `model` on so many processes; wait till it is ready."""
    hosts = folder / f"hosts{ranks}.json"
    hosts.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * ranks))
    errors = folder / "errors"
    command = [sys.executable, "-m", "lib_mlx", "serve", "--ready-json", "--hosts", str(hosts), *options, str(model)]
    with errors.open("w") as file:
        process = subprocess.Popen(
            [*prefix, *command],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=ROOT,
            env=os.environ | {"LIB_MLX_RANK_DEVICE": "cpu"},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, errors.read_text()
    return Served(process, json.loads(line)["base_url"], errors)


def stop(served: Served) -> None:
    """Stop it; no process of it is left."""
    ranks = served.ranks().values()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(15) == 0, served.errors.read_text()
    assert not psutil.wait_procs(list(ranks), 5)[1]
    assert served.process.stdout is not None
    served.process.stdout.close()
    served.client.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose heads can be divided by two and by three."""
    return build_tiny(tmp_path_factory.mktemp("sharded") / "tiny", heads=6, kv_heads=6, spread=0.3)


@pytest.fixture(scope="module")
def alone(model: Path) -> Iterator[Callable[..., str]]:
    """Return a function that asks the model in one process."""
    loaded = lib_mlx.load_model(str(model), cpu_weights="float32")
    server = loaded.start_server()
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="-", max_retries=0)
    yield lambda prompt, **options: ask(client, prompt, **options)
    client.close()
    loaded.unload()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Served]:
    """The same model on two processes."""
    running = start(tmp_path_factory.mktemp("ranks"), model, 2, "--port", "0")
    yield running
    stop(running)


def ask(client: openai.OpenAI, prompt: str, **options: Any) -> str:
    """Return an answer of 12 tokens or as `options` say."""
    options = {"max_tokens": 12, "temperature": 0} | options
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": prompt}], **options)
    return str(answer.choices[0].message.content)


def stream(client: openai.OpenAI, prompt: str, **options: Any) -> Any:
    """Begin a streamed answer."""
    options = {"max_tokens": 12, "temperature": 0} | options
    return client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": prompt}], stream=True, **options
    )


def test_answers_are_those_of_one_process(served: Served, alone: Callable[..., str]) -> None:
    """Greedy, seeded and streamed answers are those of the undivided model, also with what is kept of past prompts."""
    for prompt in PROMPTS:
        expected = alone(prompt)
        assert len(set(expected)) > 3
        assert ask(served.client, prompt) == expected
        chunks = stream(served.client, prompt)  # its prompt is in the prefix cache
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    seeded = {"temperature": 1.0, "seed": 7}
    assert ask(served.client, PROMPTS[0], **seeded) == alone(PROMPTS[0], **seeded)


def test_requests_run_in_one_batch(served: Served, alone: Callable[..., str]) -> None:
    """Requests of different lengths at the same time get the answers that each gets alone."""
    prompts = [f"{number} {prompt}" for number in range(2) for prompt in PROMPTS]
    limits = [8 + 5 * (number % 4) for number in range(len(prompts))]
    expected = [alone(prompt, max_tokens=limit) for prompt, limit in zip(prompts, limits, strict=True)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = pool.map(
            lambda item: ask(served.client, item[0], max_tokens=item[1]), zip(prompts, limits, strict=True)
        )
    assert list(answers) == expected


def test_cancelled_in_the_middle(served: Served, alone: Callable[..., str]) -> None:
    """A client that goes while others run takes nothing with it, and the next request is answered rightly."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, served.client, PROMPTS[1], max_tokens=60)
        chunks = stream(served.client, PROMPTS[0], max_tokens=4000)
        for _ in range(5):
            next(chunks)
        chunks.close()
        assert other.result() == alone(PROMPTS[1], max_tokens=60)
    assert ask(served.client, PROMPTS[2]) == alone(PROMPTS[2])


def test_forms_are_kept(served: Served, alone: Callable[..., str]) -> None:
    """The form of an answer and its limits are kept: what chooses tokens runs on rank 0 alone."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"name": "a", "strict": True, "schema": {**schema, "additionalProperties": False}}
    options = {"response_format": {"type": "json_schema", "json_schema": form}, "seed": 3, "temperature": 1.0}
    answer = ask(served.client, PROMPTS[0], **options)
    assert answer == alone(PROMPTS[0], **options)
    assert not answer.strip() or answer.lstrip().startswith("{")
    stopped = ask(served.client, PROMPTS[0], stop=alone(PROMPTS[0])[4:6])
    assert stopped == alone(PROMPTS[0]).partition(alone(PROMPTS[0])[4:6])[0]


def test_what_cannot_be_had(served: Served) -> None:
    """Embeddings and other models are refused by name."""
    with pytest.raises(openai.BadRequestError, match="several hosts makes no embeddings"):
        served.client.embeddings.create(model="tiny", input="x")
    with pytest.raises(openai.NotFoundError, match="'other'"):
        served.client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])


def test_idle_ranks_rest(served: Served) -> None:
    """Nobody computes while there is nothing to do: neither the ranks nor MLX's launcher."""
    processes = psutil.Process(served.process.pid).children(recursive=True)
    time.sleep(0.3)
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    time.sleep(1.0)
    assert sum(sum(process.cpu_times()[:2]) for process in processes) - before < 0.2


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


def test_nobody_outlives_the_service(tmp_path: Path, model: Path, alone: Callable[..., str]) -> None:
    """When the command is killed its ranks end, three of them here, and leave no files."""
    served = start(tmp_path, model, 3, "--port", "0")
    assert ask(served.client, PROMPTS[0]) == alone(PROMPTS[0])
    processes = psutil.Process(served.process.pid).children(recursive=True)
    served.process.kill()
    served.process.communicate()
    served.client.close()
    assert not psutil.wait_procs(processes, 10)[1]


def test_a_model_that_cannot_be_divided(tmp_path: Path, model: Path) -> None:
    """A model whose heads cannot be divided is refused, and nothing is left running."""
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 4))
    command = [sys.executable, "-m", "lib_mlx", "serve", "--port", "0", "--hosts", str(hosts), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "cannot be divided among 4" in " ".join(done.stderr.split())


def test_hosts_that_are_none(tmp_path: Path, model: Path) -> None:
    """A file of hosts that cannot be read, or names one, is refused with its name."""
    hosts = tmp_path / "hosts.json"
    for text, said in (("[]", "names 0 hosts"), ("{", "is no file of hosts")):
        hosts.write_text(text)
        command = [sys.executable, "-m", "lib_mlx", "serve", "--hosts", str(hosts), str(model)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT, check=False)
        assert done.returncode == 1
        assert said in done.stderr


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
