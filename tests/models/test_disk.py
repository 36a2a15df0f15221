"""Disks that are full, on file systems of a few hundred kilobytes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lib_mlx.errors import DiskFull, InvalidArgument
from lib_mlx.models import disk
from lib_mlx.models.disk import room_on, staged_folder
from tests.checkpoints.tiny import build_tiny
from tests.models.gguf_files import write_gguf
from tests.models.test_fetch import DIGEST, NAME
from tests.models.test_fetch import site as site  # noqa: PLC0414 - a fixture

if TYPE_CHECKING:
    from tests.models.web import Site

ROOT = Path(__file__).resolve().parents[2]

LOAD = """
import json, sys
from lib_mlx import abi
from lib_mlx.models import content
from lib_mlx.operations import Operation
def call(operation, handle=0, **config):
    return json.loads(abi.dispatch(operation, handle, json.dumps(config).encode()))
full = call(Operation.LOAD_MODEL, model_path=sys.argv[1])
print(full["error"]["code"], [manifest.name for manifest in content.manifests()])
print(call(Operation.LOAD_MODEL, model_path=sys.argv[2], prefix_cache_bytes=0)["status"])
print(call(Operation.SHUTDOWN)["ok"])
"""

FETCH = """
import sys
from pathlib import Path
from lib_mlx.models import fetch
target = Path(sys.argv[1]) / "file"
try:
    fetch.fetch_file(sys.argv[2], target, size=1_000_000, sha256=sys.argv[3], progress=lambda *_: None)
except OSError as error:
    print(error.errno, [path.name for path in target.parent.iterdir()])
"""


def run(folder: Path, kilobytes: int, code: str, *arguments: object) -> list[str]:
    """Run Python where `folder` is a file system of that size and holds the store; return the lines it prints."""
    folder.mkdir()
    script = f"mount -t tmpfs -o size={kilobytes}k none '{folder}' && exec \"$@\""
    command = ["unshare", "-m", "sh", "-ec", script, "sh", sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "LIB_MLX_DATA_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert done.stderr == ""
    return done.stdout.splitlines()


needs_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount")


@needs_root
def test_a_load_that_fills_the_disk(crafted: Path, tmp_path: Path) -> None:
    """A file that cannot be converted for want of room is `disk_full`; nothing stays, and the library goes on."""
    source = write_gguf(tmp_path / "model.gguf").path
    assert run(tmp_path / "disk", 64, LOAD, source, crafted) == ["disk_full []", "ready", "True"]


@needs_root
def test_a_download_that_fills_the_disk(site: Site, tmp_path: Path) -> None:
    """It ends at once, and goes on from there when there is room."""
    url = f"{site.url}/files/{NAME}"
    lines = run(tmp_path / "disk", 300, FETCH, tmp_path / "disk", url, DIGEST)
    assert lines == [f"{errno.ENOSPC} ['file.part']"]
    assert len(site.requests) == 1


def test_the_folder_is_named(tmp_path: Path) -> None:
    """The error says where there is no room; other errors stay what they are."""
    with pytest.raises(DiskFull, match=str(tmp_path)), room_on(tmp_path):
        Path("/dev/full").write_bytes(b"x")
    with pytest.raises(FileNotFoundError), room_on(tmp_path):
        (tmp_path / "nowhere" / "file").touch()


def test_a_staged_folder(tmp_path: Path) -> None:
    """It appears whole, one writer fills it, and what is left of a failure is what the same attempt goes on with."""
    target = tmp_path / "made"
    for identity, kept in (("", []), ("one", ["part"]), ("two", ["part"])):
        with pytest.raises(InvalidArgument, match="another process"):
            _write_twice(target, identity)
        assert [path.name for path in tmp_path.glob(".made.partial/[!.]*")] == kept
    with staged_folder(target, "two") as staged:
        assert (staged / "part").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "part"]
    with pytest.raises(InvalidArgument, match="exists already"), staged_folder(target):
        pass


def _write_twice(target: Path, identity: str) -> None:
    with staged_folder(target, identity) as staged:
        (staged / "part").touch(exist_ok=False)
        with staged_folder(target, identity):
            pass


def test_a_folder_that_came_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for it, and has the lock just after it was made, is told that it exists; nothing is left."""
    monkeypatch.setattr(disk, "make_folder", lambda folder: (folder.mkdir(), (tmp_path / "made").mkdir()))
    with pytest.raises(InvalidArgument, match="exists already"), disk.staged_folder(tmp_path / "made"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


TRAIN = """
import sys
from pathlib import Path
from lib_mlx.conversion.config import ConvertConfig
from lib_mlx.conversion.conversion import convert
from lib_mlx.errors import DiskFull
from lib_mlx.training.config import TrainConfig
from lib_mlx.training.trainer import train
model, data, folder = sys.argv[1:]
training = TrainConfig(model_path=model, data_path=data, output_path=folder + "/trained", method="full", steps=1)
for work, config in ((train, training), (convert, ConvertConfig(model_path=model, output_path=folder + "/converted"))):
    try:
        work(config)
    except DiskFull as error:
        left = [path for path in Path(folder).rglob("*") if path.suffix == ".safetensors"]
        print(error.message.partition(" in ")[0], left)
"""


def test_making_models_on_a_full_disk(tmp_path: Path) -> None:
    """Training and converting end with the error, and leave no part of a file."""
    tiny = build_tiny(tmp_path / "tiny")
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "red", "completion": "alpha"}\n' * 8)
    lines = run(tmp_path / "small", 200, TRAIN, tiny, data, tmp_path / "small")
    assert lines == ["There is no room left []"] * 2
