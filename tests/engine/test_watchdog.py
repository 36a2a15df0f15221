"""A stalled engine is noticed, told of, and noticed again when it goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from lib_mlx.engine.watchdog import Watchdog

if TYPE_CHECKING:
    from pathlib import Path

HOST = """
import json, sys, time, urllib.error, urllib.request
from lib_mlx.engine import worker
worker._STALLED_S = 0.4
from lib_mlx.config import LoadConfig, ServerConfig
from lib_mlx.runtime import get_runtime

def state():
    try:
        code = urllib.request.urlopen(server.base_url + "/health", timeout=5).status
    except urllib.error.HTTPError as error:
        code = error.code
    return [runtime.status(handle).model.status, code]

runtime = get_runtime()
handle = runtime.load(LoadConfig(model_path=sys.argv[1])).handle
server = runtime.start_server(handle, ServerConfig()).server
seen = [state()]
worker.get_worker().post(lambda: time.sleep(2))
until = time.monotonic() + 6
while time.monotonic() < until and len(seen) < 3:
    if (now := state()) not in seen[-1:] and now in (["ready", 200], ["stalled", 503]):
        seen.append(now)
    time.sleep(0.02)
runtime.unload(handle)
print(json.dumps(seen))
"""


def test_a_long_step_is_told_of() -> None:
    """Work without progress for as long as the limit is a stall, once; its end is told, too. Rest is no stall."""
    watchdog = Watchdog(0.1)
    told: list[bool] = []
    changed = threading.Event()

    def listener(stalled: bool) -> None:
        told.append(stalled)
        changed.set()

    watchdog.subscribe(listener)
    watchdog.start()
    time.sleep(0.3)
    watchdog.work()
    for _ in range(10):
        time.sleep(0.04)
        watchdog.progress()
    assert told == []
    assert changed.wait(2)
    changed.clear()
    assert (told, watchdog.stalled) == ([True], True)
    watchdog.rest()
    assert changed.wait(2)
    assert (told, watchdog.stalled) == ([True, False], False)
    time.sleep(0.3)
    assert told == [True, False]


def test_status_and_health_say_so(crafted: Path) -> None:
    """While the engine hangs a model is `stalled` and the server's health 503; afterwards all is well again."""
    ran = subprocess.run(
        [sys.executable, "-c", HOST, str(crafted)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == '[["ready", 200], ["stalled", 503], ["ready", 200]]'
