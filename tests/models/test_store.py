from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lib_mlx.errors import CorruptModel, ModelNotFound
from lib_mlx.models import content, folders, store
from lib_mlx.models.catalog import CATALOG
from lib_mlx.models.folders import is_complete
from tests.models.gguf_files import write_gguf

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("own_folders")


def make_model(path: Path, *, shards: int = 1) -> Path:
    path.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (path / name).write_text("{}")
    names = [f"model-{number}.safetensors" for number in range(shards)]
    for name in names:
        (path / name).write_bytes(b"x" * 10)
    if shards > 1:
        index = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def make_snapshot(hub: Path, repo: str, commit: str, ref: str | None = "main") -> Path:
    folder = hub / ("models--" + repo.replace("/", "--"))
    if ref:
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return make_model(folder / "snapshots" / commit)


def test_a_directory_is_itself(tmp_path: Path) -> None:
    """The path of a directory resolves to it, whatever is in it: loading says what is wrong."""
    assert store.resolve(str(tmp_path)) == tmp_path.resolve()


def test_a_name_is_found_in_the_store(tmp_path: Path) -> None:
    """A name resolves to the store's directory of that name."""
    path = content.import_model(make_model(tmp_path / "mine"), "mine")
    assert store.resolve("mine") == path


def test_a_repository_is_found_in_the_hub_cache(tmp_path: Path) -> None:
    """owner/name resolves to the snapshot of main, or of the branch, tag or commit that is asked for."""
    main = make_snapshot(tmp_path / "hub", "org/name", "c0ffee")
    tag = make_snapshot(tmp_path / "hub", "org/name", "deadbeef", ref="v1/rc")
    assert store.resolve("org/name") == main
    assert store.resolve("org/name", revision="v1/rc") == tag
    assert store.resolve("org/name", revision="deadbeef") == tag
    with pytest.raises(ModelNotFound):
        store.resolve("org/name", revision="v2")
    with pytest.raises(ModelNotFound):
        store.resolve("org/name", revision="../snapshots/c0ffee")


def test_a_short_name_is_found_in_the_hub_cache(tmp_path: Path) -> None:
    """smollm2 resolves to the Hub's repository where that is cached and the store has none."""
    path = make_snapshot(tmp_path / "hub", CATALOG["smollm2"].repo, "c0ffee")
    assert store.resolve("smollm2") == path
    own = content.import_model(make_model(tmp_path / "mine"), "smollm2")
    assert store.resolve("smollm2") == own


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model-1.safetensors"])
def test_an_incomplete_snapshot_does_not_count(missing: str, tmp_path: Path) -> None:
    """A repository that lacks a file in the cache is not found, as if it were not there."""
    path = make_model(tmp_path / "hub" / "models--org--name" / "snapshots" / "main", shards=2)
    assert store.resolve("org/name") == path
    (path / missing).unlink()
    with pytest.raises(ModelNotFound):
        store.resolve("org/name")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2", "lib-mlx pull smollm2"),
        ("org/name", "lib-mlx pull org/name"),
        ("nonsense", "lib-mlx pull smollm2"),
        ("/no/such/dir", "Give a directory"),
        ("../models/mine", "Give a directory"),
        ("", "Give a directory"),
        ("missing.gguf", "Give a directory"),
        ("\0", "Give a directory"),
        ("x" * 5000, "Give a directory"),
        ("a/" + "b" * 5000, "lib-mlx pull"),
        ("~no-such-user/model", "Give a directory"),
    ],
)
def test_an_unknown_name_says_how_to_get_it(name: str, hint: str, tmp_path: Path) -> None:
    """Nothing found is `model_not_found` with the command that helps; a name cannot leave the store."""
    content.import_model(make_model(tmp_path / "mine"), "mine")
    with pytest.raises(ModelNotFound) as caught:
        store.resolve(name)
    assert hint in caught.value.hint


def test_a_gguf_file_is_converted_once(tmp_path: Path) -> None:
    """A .gguf file resolves to a model in the store, converted at first use and again when it changes."""
    source = write_gguf(tmp_path / "My Model (1).gguf").path
    steps: list[tuple[int, int]] = []
    first = store.resolve(str(source), progress=lambda *step: steps.append(step))
    assert is_complete(first)
    assert first.parent == content.views_dir()
    assert first.name.startswith("My-Model-1-")
    count = len(steps)
    assert store.resolve(str(source), progress=lambda *step: steps.append(step)) == first
    assert len(steps) == count > 0
    write_gguf(source, "qwen3")
    assert store.resolve(str(source)) != first


def test_a_damaged_gguf_file_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    """A file that cannot be converted is an error each time, and no directory appears."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 100)
    with pytest.raises(CorruptModel):
        store.resolve(str(path))
    assert list(content.manifests()) == []
    assert list((folders.data_dir() / "staging").iterdir()) == []


def test_the_list_names_complete_models(tmp_path: Path) -> None:
    """Both places are listed by name with size and source; incomplete and temporary folders are not."""
    content.import_model(make_model(tmp_path / "Zeta"), "Zeta")
    (tmp_path / "hub" / "models--org--half").mkdir(parents=True)
    make_snapshot(tmp_path / "hub", "org/my--name", "c0ffee")
    (tmp_path / "hub" / "datasets--org--data").mkdir()
    models = store.list_models()
    assert [(model.name, model.source) for model in models] == [("org/my--name", "hub"), ("Zeta", "store")]
    assert all(model.bytes == 14 for model in models)


def test_the_list_is_empty_where_there_is_nothing() -> None:
    """Folders that do not exist are no error."""
    assert store.list_models() == []


def test_the_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HF_HUB_CACHE goes before HF_HOME, that before XDG_CACHE_HOME; the data folder is the platform's."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert folders.hub_cache() == tmp_path / "hub"
    monkeypatch.delenv("HF_HUB_CACHE")
    assert folders.hub_cache() == tmp_path / "home" / "hub"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert folders.hub_cache() == tmp_path / "cache" / "huggingface" / "hub"
    monkeypatch.delenv("LIB_MLX_DATA_DIR")
    assert folders.data_dir().name == "lib-mlx"
