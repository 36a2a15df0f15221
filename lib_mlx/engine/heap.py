"""Giving back to the system what was freed."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys

_BLOCK = 1 << 20
_HEAP_BYTES = 256 << 20
_MAPPED = 2


def release() -> None:
    """Return freed memory to the system. Engine thread only, after the last reference is gone."""
    import mlx.core as mx

    gc.collect()
    # Each layer draws from the thread's random state when it is made, and for what is loaded that is never computed:
    # a chain of 1 MB per model would stay. (Requests have states of their own.)
    mx.random.seed(0)
    mx.synchronize()
    mx.clear_cache()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc; musl keeps no freed pages
            libc.malloc_trim(0)
            _drop_heap_top(libc)


def _drop_heap_top(libc: ctypes.CDLL) -> None:
    """Give back the free end of this thread's heap, which malloc_trim leaves: of tens of megabytes after a load.

    Blocks that use up the heap's free places and then its end lose their pages, and are freed again.
    """
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE
    blocks: list[int] = []
    mapped = 0
    for _ in range(_HEAP_BYTES // _BLOCK):
        block = libc.malloc(_BLOCK)
        if block is None:
            break
        blocks.append(block)
        # What lies so in its page may be a mapping of its own. Blocks in the heap lie so by chance, but not in a row.
        mapped = mapped + 1 if block % page == 2 * ctypes.sizeof(ctypes.c_size_t) else 0
        if mapped == _MAPPED:  # as are all of this size
            break
        first, last = -(-block // page) * page, (block + _BLOCK) // page * page
        libc.madvise(first, last - first, mmap.MADV_DONTNEED)
    for block in blocks:
        libc.free(block)
