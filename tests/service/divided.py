"""A model that is divided among processes of this machine: the service as a process, and its clients."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import openai
import psutil

from lib_mlx.config import parse_config
from lib_mlx.conversion.config import ConvertConfig
from lib_mlx.conversion.conversion import convert

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
_begun: list[subprocess.Popen[str]] = []
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
        found = {}
        for child in self.everyone():
            with contextlib.suppress(psutil.Error):  # it has just ended
                if child.status() != psutil.STATUS_ZOMBIE and "MLX_RANK" in (given := child.environ()):
                    found[int(given["MLX_RANK"])] = child
        return found

    def until_ready(self) -> None:
        """Wait till it says where it is."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        self.base_url = json.loads(line)["base_url"]

    def until_begun(self, ranks: int) -> dict[int, psutil.Process]:
        """Wait till so many ranks have processes, which are not ready; return them."""
        until = time.monotonic() + 20
        while len(found := self.ranks()) < ranks:
            assert time.monotonic() < until, self.errors.read_text()
            time.sleep(0.02)
        return found

    def everyone(self) -> list[psutil.Process]:
        """Return all processes that it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def failure(self, timeout_s: float = 30) -> str:
        """Wait for its end, which is a failure; return what it says, in one line."""
        assert self.process.wait(timeout_s) == 1, self.errors.read_text()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return " ".join(self.errors.read_text().split("error: ")[-1].split())

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


def write_hosts(folder: Path, ranks: int, **options: Any) -> Path:
    """Write a file of hosts that are all this one; return it."""
    path = folder / f"hosts{ranks}.json"
    path.write_text(json.dumps({**options, "hosts": [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * ranks}))
    return path


def begin(
    folder: Path,
    model: Path,
    hosts: Path,
    *options: str,
    prefix: tuple[str, ...] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Served:
    """Serve `model`, but do not wait till it is ready. What it leaves of temporary files is in `folder`/tmp."""
    errors = folder / "errors"
    (folder / "tmp").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "lib_mlx", "serve", "--ready-json", "--hosts", str(hosts), *options, str(model)]
    given = {"LIB_MLX_RANK_DEVICE": "cpu", "TMPDIR": str(folder / "tmp"), **environment}
    with errors.open("w") as file:
        process = subprocess.Popen(
            [*prefix, *command], stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT, env=os.environ | given
        )
    _begun.append(process)
    return Served(process, "", errors)


def kill_all() -> None:
    """End what tests that failed have left."""
    for process in _begun:
        if process.poll() is None:
            process.kill()
            process.communicate()


def start(folder: Path, model: Path, ranks: int, *options: str, prefix: tuple[str, ...] = (), **hosts: Any) -> Served:
    """Serve `model` on so many processes; wait till it is ready."""
    served = begin(folder, model, write_hosts(folder, ranks, **hosts), *options, prefix=prefix)
    served.until_ready()
    return served


def stop(served: Served, number: int = signal.SIGTERM) -> None:
    """Stop it; no process of it is left, and no file."""
    everyone = served.everyone()
    served.process.send_signal(number)
    assert served.process.wait(15) == 0, served.errors.read_text()
    nothing_left(served, everyone)
    if served.base_url:
        served.client.close()


def nothing_left(served: Served, everyone: list[psutil.Process]) -> None:
    """Nothing of a service that has ended is left, but for what it printed."""
    assert not psutil.wait_procs(everyone, 10)[1]
    assert not [*(served.errors.parent / "tmp").glob("lib-mlx-ranks-*")]
    assert served.process.stdout is not None
    served.process.stdout.close()


def quantised(model: Path, path: Path) -> Path:
    """Write `model` to `path` with quantised weights, 32 of which share a scale; return `path`."""
    config = {"model_path": str(model), "output_path": str(path), "bits": 8, "group_size": 32}
    return convert(parse_config(ConvertConfig, config)).path


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
