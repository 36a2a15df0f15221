"""A child process that runs `lib_mlx.child`, and the channel to it.

Both ends send JSON objects over a socket pair. Down go calls, `{"call": 1, "operation": 0, "handle": 1, "json": "…"}`
(the operations of the C library); up come `{"call": 1, "answer": {…}}` and, unasked, `{"status": {…}}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import EngineDied

if TYPE_CHECKING:
    from collections.abc import Callable

# `-I`: nothing of the environment or the working directory decides what is run; the parent's own packages are.
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from lib_mlx.child import main; main()"
_END_S = 2.0
_SO_NOSIGPIPE = 0x1022  # Darwin; Python has no name for it


class ChildProcess:
    """One child. Any thread may call; all statuses come on one thread.

    Args:
        name: of its threads.
        on_status: called with each status the child tells.
        on_death: called once, with how it ended, when it has.
    """

    def __init__(
        self, name: str, *, on_status: Callable[[dict[str, Any]], None], on_death: Callable[[EngineDied], None]
    ) -> None:
        self._on_status = on_status
        self._on_death = on_death
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._calls: dict[int, Future[dict[str, Any]]] = {}
        self._next = 1
        self._channel: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._death: EngineDied | None = None
        # One thread starts it, listens and waits: Linux kills the child when the thread that started it ends.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started: Future[None] = Future()

    def start(self) -> None:
        """Start it; returns when it runs. Raises EngineDied if it cannot be started."""
        self._thread.start()
        self._started.result()

    @property
    def pid(self) -> int | None:
        """Its process id, until it has ended."""
        return None if self._process is None or self._ended.is_set() else self._process.pid

    def call(self, operation: int, handle: int = 0, config: str | None = None) -> dict[str, Any]:
        """Have the child carry out an operation of the C library; blocks until it has answered.

        Raises:
            EngineDied: it has ended, or ends meanwhile.
        """
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._death is not None:
                raise self._death.copy()
            number, self._next = self._next, self._next + 1
            self._calls[number] = answer
        call = {"call": number, "operation": operation, "handle": handle, "json": config}
        with contextlib.suppress(OSError), self._sending:  # a channel that is broken: the end will be told
            if self._channel is not None:
                self._channel.send_bytes(json.dumps(call).encode())
        return answer.result()

    def dismiss(self) -> None:
        """Close the channel, on which the child exits."""
        if self._channel is not None:
            with (
                contextlib.suppress(OSError),  # it has ended already
                socket.socket(fileno=os.dup(self._channel.fileno())) as channel,
            ):
                channel.shutdown(socket.SHUT_RDWR)  # wakes whoever reads it, here and there

    def end(self, patience_s: float = _END_S) -> None:
        """Dismiss the child, and kill it if it has not gone by then. Blocks until it is gone."""
        self.dismiss()
        if not self._ended.wait(patience_s) and self._process is not None:
            self._process.kill()
            self._ended.wait(_END_S)

    def _run(self) -> None:
        try:
            self._spawn()
        except OSError as error:
            death = EngineDied(f"The engine's process could not be started: {error.strerror or error}.")
            self._died(death)
            self._started.set_exception(death)
            return
        self._started.set_result(None)
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._take(json.loads(self._channel.recv_bytes()))  # type: ignore[union-attr]  # it was just made
        self._died(self._reap())

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            if sys.platform == "darwin":  # a thread's signal mask does not keep SIGPIPE from the process there
                ours.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
            self._channel = Connection(ours.detach())
            arguments = [json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())]
            debug = bool(os.environ.get("LIB_MLX_DEBUG"))
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-I", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if debug else subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is the host's
            )

    def _take(self, message: dict[str, Any]) -> None:
        if "status" in message:
            self._on_status(message["status"])
            return
        with self._lock:
            answer = self._calls.pop(message["call"], None)
        if answer is not None:
            answer.set_result(message["answer"])

    def _reap(self) -> EngineDied:
        process = self._process
        if process is None:
            raise AssertionError  # it was spawned
        try:
            code = process.wait(_END_S)
        except subprocess.TimeoutExpired:  # it has closed its channel, and lives
            process.kill()
            code = process.wait()
        if self._channel is not None:
            self._channel.close()
        return EngineDied(
            f"The engine's process has ended: {_manner(code)}.", hint="Unload the handle and load the model again."
        )

    def _died(self, death: EngineDied) -> None:
        with self._lock:
            self._death = death
            calls, self._calls = list(self._calls.values()), {}
        self._ended.set()
        for answer in calls:  # who waits for them may hold what `on_death` needs
            answer.set_exception(death.copy())
        self._on_death(death)


def _manner(code: int) -> str:
    """Say what an exit status means."""
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
