"""Past requests on disk: found again after a restart, ignored when stale or damaged, bounded, never in the way."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from lib_mlx.config import EngineConfig
from lib_mlx.engine import engine
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import SamplingParams
from lib_mlx.models.checkpoint import inspect
from tests.checkpoints.other_caches import CONFIGS, random_checkpoint
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from pathlib import Path

GREEDY = SamplingParams(temperature=0)
PROMPT = "hello " + "x" * 300


def session(checkpoint: Path, directory: Path, *prompts: str, **options: object) -> list[tuple[list[int], int]]:
    """Load, ask, unload; return each answer's tokens and how many of its prompt's were known."""
    options = {"prefix_cache_path": str(directory), **options}
    loaded = engine.load(inspect(checkpoint), EngineConfig.model_validate(options))
    try:
        runs = [Run(loaded, prompt, sampling=GREEDY, max_tokens=20).wait() for prompt in prompts]
    finally:
        loaded.unload()
    return [(run.job.made, run.end.usage.cached) for run in runs]


def stored(directory: Path, pattern: str = "*/*.safetensors") -> list[Path]:
    """The files of a store."""
    return sorted(directory.glob(pattern))


def test_a_restart_forgets_nothing(crafted: Path, tmp_path: Path) -> None:
    """What was asked before the restart is not computed again, and the answers are the same."""
    ((first, cold),) = session(crafted, tmp_path / "kv", PROMPT)
    ((second, warm),) = session(crafted, tmp_path / "kv", PROMPT)
    assert (first, cold) == (second, 0)
    assert warm > 300
    (file,) = stored(tmp_path / "kv")
    assert file.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", [*CONFIGS, "llama in 8 bits"])
def test_every_kind_of_cache(crafted: Path, tmp_path: Path, kind: str) -> None:
    """Rotating, recurrent and quantised caches come back as they were."""
    model_type, _, quantised = kind.partition(" ")
    checkpoint = get_worker().run(random_checkpoint, tmp_path / "model", model_type, crafted)
    options = {"kv_bits": 8} if quantised else {}
    fresh = session(checkpoint, tmp_path / "none", PROMPT + " and more", prefix_cache_bytes=0, **options)
    session(checkpoint, tmp_path / "kv", PROMPT, **options)
    again = session(checkpoint, tmp_path / "kv", PROMPT, PROMPT + " and more", **options)
    assert again[0][1] > 300
    assert again[1][0] == fresh[0][0]


def test_files_are_written_once(crafted: Path, tmp_path: Path) -> None:
    """An entry that is stored already is left alone; one that is gone from memory is removed."""
    session(crafted, tmp_path, PROMPT, "loop " + "y" * 300)
    before = {file: file.stat().st_mtime_ns for file in stored(tmp_path)}
    assert len(before) == 2
    session(crafted, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in stored(tmp_path)} == before
    size = max(file.stat().st_size for file in before)
    session(crafted, tmp_path, "long " + "z" * 300, prefix_cache_bytes=int(1.2 * size))
    assert len(stored(tmp_path)) == 1
    assert sum(file.stat().st_size for file in stored(tmp_path)) < 1.3 * size


def test_it_takes_few_of_the_hosts_descriptors(crafted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is open until its entry is used: no more entries are stored, the latest, than that bears."""
    monkeypatch.setattr("lib_mlx.engine.prefix_store._MOST", 3)
    prompts = [f"{letter * 300} hello" for letter in "abcde"]
    session(crafted, tmp_path, *prompts)
    assert len(stored(tmp_path)) == 3
    again = [session(crafted, tmp_path, prompt)[0][1] for prompt in (prompts[4], prompts[1])]
    assert again[0] > 300 > again[1]


def test_another_state_of_the_model_finds_nothing(crafted: Path, tmp_path: Path) -> None:
    """Other weights, or the same kept otherwise, make the store stale: it is ignored and replaced."""
    checkpoint = shutil.copytree(crafted, tmp_path / "model")
    session(checkpoint, tmp_path / "kv", PROMPT)
    assert session(checkpoint, tmp_path / "kv", PROMPT, kv_bits=8)[0][1] == 0
    session(checkpoint, tmp_path / "kv", PROMPT)
    os.utime(checkpoint / "model.safetensors", ns=(1, 1))
    assert session(checkpoint, tmp_path / "kv", PROMPT)[0][1] == 0
    assert session(checkpoint, tmp_path / "kv", PROMPT)[0][1] > 300


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "index", "no object", "fields"])
def test_damage_is_noticed(crafted: Path, tmp_path: Path, damage: str) -> None:
    """Whatever has become of the files, the answer is right and the store works again afterwards."""
    ((right, _),) = session(crafted, tmp_path, PROMPT)
    (file,), (index,) = stored(tmp_path), stored(tmp_path, "*/index.json")
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-1000] ^= 0x40
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[:-1000])
    elif damage == "missing":
        file.unlink()
    elif damage == "index":
        index.write_text(index.read_text()[:-20])
    elif damage == "no object":
        index.write_text("[1]")
    else:
        value = json.loads(index.read_text())
        value["entries"] = [{"file": "../../x"}, 5]
        index.write_text(json.dumps(value))
    assert session(crafted, tmp_path, PROMPT) == [(right, 0)]
    assert session(crafted, tmp_path, PROMPT)[0][1] > 300


def test_a_place_that_cannot_be_written(crafted: Path, tmp_path: Path) -> None:
    """It is refused by name when the model is loaded."""
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument) as refused:
        session(crafted, tmp_path / "file")
    assert refused.value.param == "prefix_cache_path"


def test_a_salt_that_is_no_text(crafted: Path, tmp_path: Path) -> None:
    """Python's strings may hold what UTF-8 cannot."""
    for expected in (0, 300):
        loaded = engine.load(inspect(crafted), EngineConfig(prefix_cache_path=str(tmp_path)))
        run = Run(loaded, PROMPT, cache_salt="\udcff").wait()
        loaded.unload()
        assert run.end.usage.cached >= expected


def test_a_place_that_cannot_be_locked(crafted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no locks: nothing is stored, and the model is unloaded all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("lib_mlx.engine.prefix_store.FileLock", refuse)
    session(crafted, tmp_path, PROMPT)
    assert stored(tmp_path) == []


def test_a_place_that_is_gone_at_unload(crafted: Path, tmp_path: Path) -> None:
    """The unload goes well; what could not be stored is lost."""
    loaded = engine.load(inspect(crafted), EngineConfig(prefix_cache_path=str(tmp_path / "kv")))
    Run(loaded, PROMPT).wait()
    shutil.rmtree(tmp_path / "kv")
    (tmp_path / "kv").touch()
    loaded.unload()
    assert session(crafted, tmp_path / "other", PROMPT)[0][1] == 0
