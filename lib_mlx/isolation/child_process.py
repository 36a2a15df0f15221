"""A child process that runs `lib_mlx.child`, and the channel to it.

Both ends send JSON objects, one a line, over a socket pair. Down go calls, `{"call": 1, "operation": 0, "handle": 1,
"json": "…"}` (the operations of the C library); up come `{"call": 1, "answer": {…}}` and, unasked, `{"status": {…}}`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import EngineDied

if TYPE_CHECKING:
    from collections.abc import Callable

# `-I`: nothing of the environment or the working directory decides what is run; the parent's own packages are.
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from lib_mlx.child import main; main()"
_END_S = 2.0
_SO_NOSIGPIPE = 0x1022  # Darwin; Python has no name for it
_MSG_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # a child that has gone must not kill a host that minds SIGPIPE


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
        self._name = name
        self._on_status = on_status
        self._on_death = on_death
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._calls: dict[int, Future[dict[str, Any]]] = {}
        self._next = 1
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = self._dismissed = False
        self._started = threading.Event()
        self._ended = threading.Event()
        self._death: EngineDied | None = None

    def start(self) -> None:
        """Start it; returns when it runs. Raises EngineDied if it cannot be started, or was dismissed already."""
        with self._lock:
            if self._dismissed:
                raise _dismissed()
            self._begun = True
        # One thread starts it, listens and waits: Linux kills the child when the thread that started it ends.
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError as error:
            self._died(_not_started(error))
        self._started.wait()
        if self._process is None:
            raise (self._death or _dismissed()).copy()

    @property
    def pid(self) -> int | None:
        """Its process id, until it has ended."""
        return None if self._process is None or self._ended.is_set() else self._process.pid

    def submit(self, operation: int, handle: int = 0, config: str | None = None) -> Future[dict[str, Any]]:
        """Have the child carry out an operation of the C library.

        The future has its answer, or EngineDied if it has ended, ends meanwhile, or does not run yet.
        """
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._channel is None or self._death is not None:
                answer.set_exception((self._death or _dismissed()).copy())
                return answer
            channel = self._channel
            number, self._next = self._next, self._next + 1
            self._calls[number] = answer
        call = {"call": number, "operation": operation, "handle": handle, "json": config}
        with contextlib.suppress(OSError), self._sending:  # a channel that is broken: the end will be told
            channel.sendall(json.dumps(call).encode() + b"\n", _MSG_NOSIGNAL)
        return answer

    def dismiss(self) -> None:
        """Close the channel, on which the child exits; one that was not started yet never will be."""
        with self._lock:
            self._dismissed = True
            if not self._begun:
                self._ended.set()
            if self._channel is not None:
                with contextlib.suppress(OSError):  # it has ended already
                    self._channel.shutdown(socket.SHUT_RDWR)  # wakes whoever reads it, here and there

    def end(self, patience_s: float = _END_S) -> None:
        """Dismiss the child, and kill it if it has not gone by then. Blocks until it is gone."""
        self.dismiss()
        if not self._ended.wait(patience_s) and self._process is not None:
            self._process.kill()
            self._ended.wait(_END_S)

    def _run(self) -> None:
        death = None
        try:
            process, channel = self._spawn()
            self._started.set()
            watch = threading.Thread(target=self._watch, args=(process,), name=f"{self._name}-end", daemon=True)
            watch.start()
            with contextlib.suppress(OSError), channel.makefile("rb") as lines:
                for line in lines:
                    self._take(json.loads(line))
        except BaseException as error:  # noqa: BLE001 - whatever it is, those who wait must learn of it
            death = _not_started(error)
        if self._process is not None:
            death = self._reap(self._process)
        with self._lock, self._sending:  # nobody may be using a number that becomes another's
            if self._channel is not None:
                self._channel.close()
        self._died(death or _dismissed())

    def _spawn(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = map(_beyond_stdio, socket.socketpair())
        with theirs:
            if sys.platform == "darwin":  # a thread's signal mask does not keep SIGPIPE from the process there
                ours.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
            with self._lock:
                self._channel = ours
                if self._dismissed:
                    raise _dismissed()
            arguments = [json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())]
            debug = bool(os.environ.get("LIB_MLX_DEBUG"))
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [_interpreter(), "-I", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if debug else subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is the host's
            )
        return self._process, ours

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """End the channel with the process: a fork of the host's, or of the child's, may hold its other end open."""
        process.wait()
        self.dismiss()

    def _take(self, message: dict[str, Any]) -> None:
        if "status" in message:
            self._on_status(message["status"])
            return
        with self._lock:
            answer = self._calls.pop(message["call"], None)
        if answer is not None:
            answer.set_result(message["answer"])

    @staticmethod
    def _reap(process: subprocess.Popen[bytes]) -> EngineDied:
        try:
            code = process.wait(_END_S)
        except subprocess.TimeoutExpired:  # it has closed its channel, and lives
            process.kill()
            code = process.wait()
        return EngineDied(
            f"The engine's process has ended: {_manner(code)}.", hint="Unload the handle and load the model again."
        )

    def _died(self, death: EngineDied) -> None:
        with self._lock:
            self._death = death
            calls, self._calls = list(self._calls.values()), {}
        self._ended.set()
        self._started.set()
        for answer in calls:  # who waits for them may hold what `on_death` needs
            answer.set_exception(death.copy())
        self._on_death(death)


def _interpreter() -> str:
    """Return the executable of the Python that runs here; `sys.executable` is an app that embeds or holds one, too."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [Path(prefix, "bin", name) for prefix in (sys.prefix, sys.base_prefix)]
    for place in (*places, Path(sys.executable or "")):
        if place.name.startswith("python") and os.access(place, os.X_OK):
            return str(place)
    raise EngineDied(f"The engine's process could not be started: there is no {places[0]}.")


def _beyond_stdio(channel: socket.socket) -> socket.socket:
    """Return the socket under a number that is none of the standard streams', which a host may have closed."""
    with channel:
        return socket.socket(fileno=fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, 3))


def _dismissed() -> EngineDied:
    return EngineDied("The engine's process was not started.")


def _not_started(error: BaseException) -> EngineDied:
    if isinstance(error, EngineDied):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return EngineDied(f"The engine's process could not be started: {reason}.")


def _manner(code: int) -> str:
    """Say what an exit status means."""
    if code == 0:  # of a child that was not dismissed: it is what Python makes of a status that somebody else has taken
        return "how is not known, for the host reaps its children or ignores SIGCHLD"
    if code > 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
