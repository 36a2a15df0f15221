"""The processes of one life of a divided model: `mlx.launch`, the ranks it starts, and the wire to rank 0."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import ServerStartFailed

if TYPE_CHECKING:
    from typing import Self

    from lib_mlx.service.hosts import HostFile

_END_S = 8.0  # for ranks that serve to end by themselves
_QUICK_S = 2.0  # for others; the launcher may wait for a host that cannot be reached
_LATE_S = 1.0  # for the last words of a launcher that has ended
_STUFFING = bytes(256 << 10)  # fills the pipes to the ranks, four of Linux's
_WORDS = 4096  # characters of a line that are kept
_END = re.compile(r"\[WARN\] Node with rank (\d+) (.*)")  # as MLX's launcher tells of it
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Launch:
    """Ranks that have been started. `end` them.

    Args:
        hosts: where.
        wanted: what rank 0 is told.

    Raises:
        ServerStartFailed: they cannot be started.
    """

    def __init__(self, hosts: HostFile, wanted: dict[str, Any]) -> None:
        self._hosts = hosts
        self._wanted = wanted
        self._connected: socket.socket | None = None
        self._read = b""
        self._spoke = False
        self._lines: deque[str] = deque(maxlen=50)
        port = hosts.first_port()
        self._folder = Path(tempfile.mkdtemp(prefix="lib-mlx-ranks-"))
        self._server = socket.socket(socket.AF_UNIX)
        try:
            self._server.bind(str(self._folder / "control"))
            self._server.listen(8)
            (self._folder / "hosts.json").write_bytes(hosts.to_mlx())
            self._launcher = self._start(port)
        except OSError as error:
            self._server.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise ServerStartFailed(
                f"The ranks cannot be started from {self._folder}: {error}.",
                hint="Have TMPDIR name a folder with a short path that can be written.",
            ) from None
        self._printing = threading.Thread(target=self._print, name="lib_mlx-ranks", daemon=True)
        self._printing.start()
        threading.Thread(target=self._stuff, name="lib_mlx-launcher", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def hear(self, timeout_s: float) -> list[dict[str, Any]] | None:
        """Return what rank 0 has said within `timeout_s`; None if it is gone, or the launcher."""
        if not select.select([self._connected or self._server], [], [], timeout_s)[0]:
            return [] if self._launcher.poll() is None else None
        with contextlib.suppress(OSError):  # it has ended without having read everything
            if self._connected is None:
                self._connected, _ = self._server.accept()
                self._connected.sendall(json.dumps(self._wanted).encode() + b"\n")
                return []
            if more := self._connected.recv(1 << 16):
                self._spoke = True
                *lines, self._read = (self._read + more).split(b"\n")
                return [json.loads(line) for line in lines]
        return None

    def end(self) -> None:
        """Have rank 0 end, and the others with it; those that do not are killed. Blocks."""
        self._server.close()
        if self._connected is not None:
            self._connected.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._launcher.wait(_END_S if self._spoke else _QUICK_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._launcher.pid, signal.SIGKILL)
        self._launcher.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._printing.join(_LATE_S)
        # A program that ssh has left in the background may still hold it; closing would wait for that one.
        pipes = [self._launcher.stdin, None if self._printing.is_alive() else self._launcher.stdout]
        for pipe in filter(None, pipes):
            with contextlib.suppress(OSError):
                pipe.close()

    @property
    def last_words(self) -> str:
        """Which rank ended first, and what was printed last."""
        self._printing.join(_LATE_S)
        ends = [found for line in self._lines if (found := _END.match(line))]
        printed = [line for line in self._lines if not _END.match(line)]
        said = [f"rank {end[1]} ({self._hosts.hosts[int(end[1])].ssh}) {end[2]}" for end in ends[:1]] + printed[-1:]
        return ": ".join(said) or f"mlx.launch ended with {self._launcher.poll()}"

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - MLX's
            [
                *(sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"),  # `mlx.launch`
                *("--hostfile", str(self._folder / "hosts.json")),
                *("--starting-port", str(port), "--nccl-port", str(port)),
                *("--", sys.executable, "-m", "lib_mlx.rank", str(self._folder / "control")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(self._folder)},  # the launcher leaves files behind
            start_new_session=True,
        )

    def _print(self) -> None:
        """Pass on what the ranks print: to stderr, for our stdout tells clients when they are ready."""
        if self._launcher.stdout is None:
            raise RuntimeError("a launcher without a stdout")
        with contextlib.suppress(OSError, ValueError):  # it has been closed
            for data in self._launcher.stdout:
                line = _COLOUR.sub("", data.decode(errors="replace"))
                with contextlib.suppress(OSError, ValueError):  # nobody reads; the ranks must not wait for that
                    sys.stderr.write(line)
                    sys.stderr.flush()
                if text := line[:_WORDS].strip():
                    self._lines.append(text)

    def _stuff(self) -> None:
        """Fill the ranks' standard inputs, which they do not read: the launcher spins while one has room."""
        with contextlib.suppress(OSError):
            if self._launcher.stdin is not None:
                self._launcher.stdin.write(_STUFFING)
                self._launcher.stdin.flush()
