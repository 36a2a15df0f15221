"""How much memory the KV caches of one model may take. Engine thread only.

Rows of a batch are padded to the longest: a batch takes rows x longest.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import mlx.core as mx

from lib_mlx import memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.models.kv_cache import Footprint

_SHARE = 0.75  # of the memory that is free; the rest is for activations and the host
_FRESH_S = 1.0  # how long a reading of the free memory counts


class KVBudget:
    """The bound on the caches of all rows together.

    Args:
        row: the size of one row.
        limit: the bound in bytes; None: a share of what the machine has free, read anew as it changes.
    """

    def __init__(self, row: Footprint, limit: int | None = None) -> None:
        self.limit = limit
        self._row = row
        self._allowed = 0
        self._read_at = float("-inf")

    def need(self, rows: int, longest: int) -> int:
        """Return the bytes of a batch of so many rows, each as long as its longest and a token longer than now."""
        return rows * self._row.of(longest + 1) if rows else 0

    def excess(self, wanted: int, held: Callable[[], int]) -> int:
        """Return by how many bytes caches of `wanted` bytes would be too large; 0 or less if they are not.

        `held` tells what caches really take now: the machine's free memory lacks that already, and only that.
        """
        if self.limit is not None:
            return wanted - self.limit
        now = time.monotonic()
        if now - self._read_at > _FRESH_S:
            self._allowed, self._read_at = held() + int(_SHARE * _free_bytes()), now
        return wanted - self._allowed


def _free_bytes() -> int:
    """Return the memory that new arrays can have, where MLX puts them."""
    on_host = memory.available_bytes() + mx.get_cache_memory()
    if mx.default_device().type == mx.DeviceType.cpu:
        return on_host
    info = mx.device_info()
    size = info.get("max_recommended_working_set_size") or info.get("total_memory") or info.get("memory_size")
    return max(0, int(size) - mx.get_active_memory()) if size else on_host
