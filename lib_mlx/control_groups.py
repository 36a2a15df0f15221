"""The memory that Linux control groups leave a process: in a container far less than the machine has.

Versions 1 and 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html); every group above counts, too.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Files:
    """The names of one version."""

    limit: str
    usage: str
    cache: str
    """The line of memory.stat that counts what can be dropped at once: files read and not used lately."""


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def available_bytes(membership: Path = Path("/proc/self/cgroup"), mount: Path = _MOUNT) -> int | None:
    """Return how much more memory this process may take; None where no group limits it."""
    left = [
        max(0, limit - used)
        for group, files in _groups(membership, mount)
        for limit, used in [_read(group, files)]
        if limit is not None
    ]
    return min(left, default=None)


def _groups(membership: Path, mount: Path) -> Iterator[tuple[Path, _Files]]:
    """Yield the groups that this process is in, and those above them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, files = mount, _V2
        elif "memory" in controllers.split(","):
            root, files = mount / "memory", _V1
        else:
            continue
        group = root / path.strip("/")
        while group != root:
            yield group, files
            group = group.parent
        yield root, files


def _read(group: Path, files: _Files) -> tuple[int | None, int]:
    """Return a group's limit in bytes, None if it has none, and what of it cannot be had back."""
    with contextlib.suppress(OSError, ValueError):
        limit = (group / files.limit).read_text().strip()
        if limit == "max":
            return None, 0
        used = int((group / files.usage).read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == files.cache:
                used -= int(value)
        return int(limit), used
    return None, 0
