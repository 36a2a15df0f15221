"""The child process of an isolated model: the C library's operations, asked for over a channel.

It ends with its parent: by the channel's end, and on Linux by a signal in case it does not get to read that.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lib_mlx.abi import attach, dispatch
from lib_mlx.operations import Operation

_PR_SET_PDEATHSIG = 1
_CALLS = 16  # at once; they block


def main() -> None:
    """Serve the parent until it goes. `sys.argv` has the packages' paths, the channel, the parent's process id."""
    channel, parent = socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])
    channel.set_inheritable(False)  # a program that is run here would keep it open
    _die_with(parent)
    _forget_the_hosts_signals()
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), lock:  # the parent is gone, which the reader below learns
            channel.sendall(json.dumps(message).encode() + b"\n")

    def publish(_handle: int, status: bytes | None) -> None:
        if status is not None:
            send({"status": json.loads(status)})

    def carry_out(call: dict[str, Any]) -> None:
        config = call["json"]
        answer = dispatch(call["operation"], call["handle"], config.encode() if config is not None else None)
        send({"call": call["call"], "answer": json.loads(answer)})

    attach(publish, model_ready=lambda: None)
    calls = ThreadPoolExecutor(_CALLS, "lib_mlx-call")
    with contextlib.suppress(OSError):
        for line in channel.makefile("rb"):
            calls.submit(carry_out, json.loads(line))
    dispatch(Operation.EXIT, 0, None)
    os._exit(0)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has gone already
        os._exit(0)


def _forget_the_hosts_signals() -> None:
    """Be ended by signals, whatever the host blocks or ignores, and learn how its own children ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
