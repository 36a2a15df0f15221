"""What control groups leave a process: read from files as the kernel writes them, and from real groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lib_mlx import control_groups

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 400 << 20


def group(path: Path, names: tuple[str, str, str], limit: str, usage: int, inactive: int) -> None:
    """Write a group's files."""
    path.mkdir(parents=True, exist_ok=True)
    (path / names[0]).write_text(f"{limit}\n")
    (path / names[1]).write_text(f"{usage}\n")
    (path / "memory.stat").write_text(f"anon 5\n{names[2]} {inactive}\nfile 7\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.mark.parametrize(("line", "names", "root"), [("0::/a/b", V2, "."), ("4:cpu,memory:/a/b", V1, "memory")])
def test_the_tightest_group_counts(tmp_path: Path, line: str, names: tuple[str, str, str], root: str) -> None:
    """Of all groups above the process the one with least left decides; dropped caches count as free."""
    (tmp_path / "membership").write_text(f"9:name=systemd:/\n{line}\n")
    group(tmp_path / root / "a" / "b", names, "1000", 300, 100)
    group(tmp_path / root / "a", names, "5000", 4600, 0)
    assert control_groups.available_bytes(tmp_path / "membership", tmp_path) == 400
    group(tmp_path / root / "a", names, "5000", 1000, 0)
    assert control_groups.available_bytes(tmp_path / "membership", tmp_path) == 800
    group(tmp_path / root / "a" / "b", names, "1000", 2000, 0)
    assert control_groups.available_bytes(tmp_path / "membership", tmp_path) == 0


def test_no_limit(tmp_path: Path) -> None:
    """Groups without a limit, without files, or no groups at all."""
    assert control_groups.available_bytes(tmp_path / "missing", tmp_path) is None
    (tmp_path / "membership").write_text("0::/a\n")
    assert control_groups.available_bytes(tmp_path / "membership", tmp_path) is None
    group(tmp_path / "a", V2, "max", 10, 0)
    assert control_groups.available_bytes(tmp_path / "membership", tmp_path) is None


@pytest.fixture
def limited() -> Iterator[Path]:
    """A real group with a limit, where this user may make one."""
    path = GROUPS / f"lib_mlx-test-{os.getpid()}"
    try:
        path.mkdir()
        (path / V1[0]).write_text(str(LIMIT))
    except OSError:
        pytest.skip("control groups cannot be made here")
    yield path
    path.rmdir()


HOST = """
import json, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
from lib_mlx import memory
from lib_mlx.errors import InsufficientMemory
try:
    memory.check_fits(500 << 20, "A large model")
except InsufficientMemory as error:
    print(json.dumps([memory.available_bytes(), error.code]))
"""


def test_a_process_in_a_group(limited: Path) -> None:
    """In a container what the group leaves counts, not what the machine has: the load is refused, not killed."""
    ran = subprocess.run(
        [sys.executable, "-c", HOST, str(limited)], capture_output=True, text=True, timeout=60, check=True
    )
    available, code = ran.stdout.strip("[]\n").split(", ")
    assert 0 < int(available) < LIMIT
    assert code == '"insufficient_memory"'
