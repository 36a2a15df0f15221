"""The content-addressed store: each file once, whole or not there, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib_mlx.errors import CorruptModel, InvalidArgument, ModelNotFound
from lib_mlx.models import content, store

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = os.urandom(300_000)


@pytest.fixture(autouse=True)
def _own(own_folders: Path) -> None:
    assert own_folders


def make(path: Path, *, weights: bytes = WEIGHTS, config: str = "{}") -> Path:
    """A model directory, with a file in a folder."""
    (path / "inner").mkdir(parents=True)
    (path / "config.json").write_text(config)
    (path / "tokenizer.json").write_text('{"model": 1}')
    (path / "model.safetensors").write_bytes(weights)
    (path / "inner" / "note.txt").write_text("note")
    return path


def blobs() -> set[str]:
    """The files there are."""
    return {path.name for path in content.blobs_dir().iterdir()}


def test_an_imported_model_is_found(tmp_path: Path) -> None:
    """It resolves by its name, is listed, and has the same files; the source may go."""
    steps: list[tuple[int, int]] = []
    source = make(tmp_path / "source")
    path = content.import_model(source, "org/mine", progress=lambda *step: steps.append(step))
    shutil.rmtree(source)
    assert store.resolve("org/mine") == path
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert (path / "inner" / "note.txt").read_text() == "note"
    assert steps[-1][0] == steps[-1][1]
    (listed,) = store.list_models()
    assert (listed.name, listed.source, listed.bytes) == ("org/mine", "store", content.read_manifest("org/mine").bytes)  # type: ignore[union-attr]
    assert content.verify() == []


def test_each_file_once(tmp_path: Path) -> None:
    """What two models share is there once, and takes no more room where the disk can link or clone."""
    content.import_model(make(tmp_path / "a"), "a")
    content.import_model(make(tmp_path / "b", config='{"b": 1}'), "b")
    assert len(blobs()) == 5
    view = store.resolve("a") / "model.safetensors"
    assert view.samefile(store.resolve("b") / "model.safetensors")
    assert (tmp_path / "a" / "model.safetensors").stat().st_nlink > 1 or sys.platform == "darwin"


def test_removing_frees_what_nobody_else_has(tmp_path: Path) -> None:
    """Shared files stay as long as a model has them."""
    content.import_model(make(tmp_path / "a"), "a")
    content.import_model(make(tmp_path / "b", config='{"b": 1}'), "b")
    assert content.remove("a") == 2
    assert (store.resolve("b") / "model.safetensors").read_bytes() == WEIGHTS
    with pytest.raises(ModelNotFound):
        store.resolve("a")
    assert content.remove("b") > len(WEIGHTS)
    assert blobs() == set()
    assert list(content.views_dir().iterdir()) == []
    for name in ("a", "../x", "nothing"):
        with pytest.raises(ModelNotFound):
            content.remove(name)


def test_a_model_is_replaced(tmp_path: Path) -> None:
    """Importing under a name again replaces the model; what only the old one had is gone."""
    content.import_model(make(tmp_path / "a"), "a")
    content.import_model(make(tmp_path / "b", weights=b"other"), "a")
    assert (store.resolve("a") / "model.safetensors").read_bytes() == b"other"
    assert len(blobs()) == 4


@pytest.mark.parametrize("name", ["../x", "a/b/c", "", ".hidden", "a b", "/x"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    """A name cannot leave the store."""
    with pytest.raises(InvalidArgument):
        content.import_model(make(tmp_path / "a"), name)
    assert content.find(name) is None


def test_what_is_no_model(tmp_path: Path) -> None:
    """An incomplete directory is refused, and nothing is taken."""
    source = make(tmp_path / "a")
    (source / "tokenizer.json").unlink()
    with pytest.raises(InvalidArgument, match="no complete model"):
        content.import_model(source, "a")
    assert not content.blobs_dir().exists()


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """The check names model and file, also of a file that is missing."""
    path = content.import_model(make(tmp_path / "a"), "a")
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[1000] ^= 1
    (path / "model.safetensors").write_bytes(weights)
    assert content.verify() == ["a: model.safetensors is damaged"]
    blob = content.read_manifest("a").files["config.json"]  # type: ignore[union-attr]
    (content.blobs_dir() / f"sha256-{blob.sha256}").unlink()
    assert "a: config.json is missing" in content.verify()
    (content.manifests_dir() / "a" / "main.json").write_text("{")
    assert content.verify() == ["a/main.json: the manifest cannot be read"]


def test_a_view_is_made_when_it_is_missing(tmp_path: Path) -> None:
    """The manifest is the truth; without a file that it names there is an error that says so."""
    path = content.import_model(make(tmp_path / "a"), "a")
    shutil.rmtree(path)
    assert store.resolve("a") == path
    shutil.rmtree(path)
    blob = content.read_manifest("a").files["config.json"]  # type: ignore[union-attr]
    (content.blobs_dir() / f"sha256-{blob.sha256}").unlink()
    with pytest.raises(CorruptModel, match="'a'"):
        store.resolve("a")
    assert not [path for path in content.views_dir().iterdir() if path.suffix == ".tmp"]


IMPORT = """
import sys
from pathlib import Path
from lib_mlx.models import content
print("ready", flush=True)
for number in range(1000):
    content.import_model(Path(sys.argv[1]), f"m{number % 3}")
    content.remove(f"m{number % 3}")
"""


def test_a_crash_leaves_a_clean_store(tmp_path: Path) -> None:
    """A process that is killed at any moment leaves nothing that the check complains of, nor anything of its own."""
    source = make(tmp_path / "a")
    content.import_model(source, "keep")
    for delay in (0.01, 0.03, 0.05, 0.08, 0.13):
        command = [sys.executable, "-c", IMPORT, str(source)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        assert content.verify() == []
        names = {manifest.name for manifest in content.manifests()}
        assert "keep" in names
        assert len(list(content.views_dir().iterdir())) <= len(names)
        assert not [path for path in content.blobs_dir().iterdir() if path.suffix == ".tmp"]


def test_what_was_being_made_goes(tmp_path: Path) -> None:
    """The folder of a model in the making stays as long as its process lives; the next change removes the others'."""
    with content.staging() as staged:
        (staged / "half").write_text("x")
        left = content.data_dir() / "staging" / "killed"
        left.mkdir()
        assert content.verify() == []
        assert (staged / "half").exists()
        assert not left.exists()
    assert list((content.data_dir() / "staging").iterdir()) == []


def test_a_model_of_our_own_is_moved(tmp_path: Path) -> None:
    """What was made in the data folder is not copied."""
    with content.staging() as staged:
        weights = make(staged / "a") / "model.safetensors"
        inode = weights.stat().st_ino
        path = content.import_model(staged / "a", "a", own=True)
    assert (path / "model.safetensors").stat().st_ino == inode
    assert content.verify() == []


def test_many_at_once(tmp_path: Path) -> None:
    """Imports, removals and checks of several threads and processes do not meet."""
    source = make(tmp_path / "a")
    command = [sys.executable, "-c", IMPORT.replace("1000", "20"), str(source)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as other:

        def work(number: int) -> list[str]:
            content.import_model(source, f"t{number}")
            faults = content.verify()
            content.remove(f"t{number}")
            return faults

        with ThreadPoolExecutor(4) as pool:
            assert [faults for faults in pool.map(work, range(20)) if faults] == []
        assert other.stderr is not None
        assert (other.wait(60), other.stderr.read()) == (0, "")
    assert blobs() == set()
    assert list(content.manifests_dir().rglob("*.json")) == []


def test_manifests_say_what_is_in_them(tmp_path: Path) -> None:
    """A manifest is readable JSON with each file's sum and size."""
    content.import_model(make(tmp_path / "a"), "a", revision="v1")
    values = json.loads((content.manifests_dir() / "a" / "v1.json").read_text())
    assert values["files"]["model.safetensors"]["size"] == len(WEIGHTS)
    assert store.resolve("a", "v1")
    with pytest.raises(ModelNotFound):
        store.resolve("a")
