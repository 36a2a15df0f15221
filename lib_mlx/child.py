"""The child process of an isolated model: the C library's operations, asked for over a channel.

It ends with its parent: by the channel's end, and on Linux by a signal in case it does not get to read that.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from lib_mlx.abi import attach, dispatch
from lib_mlx.operations import Operation

_PR_SET_PDEATHSIG = 1
_CALLS = 16  # at once; they block


def main() -> None:
    """Serve the parent until it goes. `sys.argv` has the packages' paths, the channel, the parent's process id."""
    channel, parent = Connection(int(sys.argv[2])), int(sys.argv[3])
    _die_with(parent)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), lock:  # the parent is gone, which the reader below learns
            channel.send_bytes(json.dumps(message).encode())

    def publish(_handle: int, status: bytes | None) -> None:
        if status is not None:
            send({"status": json.loads(status)})

    def carry_out(call: dict[str, Any]) -> None:
        config = call["json"]
        answer = dispatch(call["operation"], call["handle"], config.encode() if config is not None else None)
        send({"call": call["call"], "answer": json.loads(answer)})

    attach(publish, model_ready=lambda: None)
    calls = ThreadPoolExecutor(_CALLS, "lib_mlx-call")
    with contextlib.suppress(EOFError, OSError):
        while True:
            calls.submit(carry_out, json.loads(channel.recv_bytes()))
    dispatch(Operation.EXIT, 0, None)
    os._exit(0)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has gone already
        os._exit(0)
