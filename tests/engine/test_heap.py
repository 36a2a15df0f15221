"""Memory that was freed goes back to the system."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ENDS = """
import ctypes, json, sys
import mlx.core as mx
from lib_mlx.engine import heap
from lib_mlx.engine.worker import get_worker
from lib_mlx.memory import resident_bytes

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def fill_and_free(block_bytes, count):
    blocks = [libc.malloc(block_bytes) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, block_bytes)
    for block in blocks:
        libc.free(block)

def measure():
    mx.random.seed(0)
    mx.synchronize()
    fill_and_free(30 << 20, 1)  # from now on glibc takes blocks below 30 MB from heaps and keeps free ends of 60 MB
    block = libc.malloc(1 << 20)
    libc.free(block)
    libc.malloc((1 << 16) + (place - block) % 4096 - 8)  # moves the free end within its page
    before = resident_bytes()
    fill_and_free(100_000, 450)
    freed = resident_bytes()
    heap.release()
    print(json.dumps([freed - before, resident_bytes() - before]))

place = int(sys.argv[1])
get_worker().run(measure)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps")
@pytest.mark.parametrize("place", range(0, 4096, 512))
def test_the_free_end_of_a_heap(place: int) -> None:
    """It is given back wherever in its page it begins."""
    command = [sys.executable, "-c", ENDS, str(place)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    kept, left = json.loads(ran.stdout)
    assert kept > 40_000_000  # else the test shows nothing
    assert left < 5_000_000
