"""Inspecting model directories."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.errors import CorruptModel, LibMlxError, ModelNotFound, UnsupportedModel
from lib_mlx.models.checkpoint import inspect

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def copy(crafted: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return shutil.copytree(crafted, tmp_path / "model")


def edit_config(path: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_good_checkpoint(crafted: Path) -> None:
    """Architecture, context length and the bytes of the weights are read."""
    found = inspect(crafted)
    assert (found.model_type, found.context_length) == ("llama", 4096)
    weights = (crafted / "model.safetensors").stat().st_size
    assert weights * 0.9 < found.weight_bytes < weights


def test_a_missing_directory_and_a_directory_without_a_model(tmp_path: Path) -> None:
    """Both are `model_not_found`."""
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelNotFound):
            inspect(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_weights(copy: Path, keep: int) -> None:
    """A weight file that ends early is noticed before MLX maps it."""
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptModel, match="truncated or damaged"):
        inspect(copy)


@pytest.mark.parametrize(
    "content",
    [b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b'\x0b\0\0\0\0\0\0\0{"a":{"b":1}', b"\x04" + b"\0" * 7 + b"null"],
)
def test_weights_that_are_not_safetensors(copy: Path, content: bytes) -> None:
    """Any other file under that name is corrupt, and no number in it makes us allocate."""
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptModel):
        inspect(copy)


def test_no_weights_or_pickled_ones(copy: Path) -> None:
    """Only safetensors are loaded."""
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="safetensors"):
        inspect(copy)


def test_a_missing_shard(copy: Path) -> None:
    """Every file the index names must be there."""
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(CorruptModel, match=r"model-2\.safetensors"):
        inspect(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"architectures": []}', '{"model_type": 5}'])
def test_a_bad_config(copy: Path, text: str) -> None:
    """A config that is not an object with a model_type is corrupt."""
    (copy / "config.json").write_text(text)
    with pytest.raises(CorruptModel):
        inspect(copy)


def test_a_checkpoint_with_code_is_refused(copy: Path) -> None:
    """`model_file` would be executed by mlx-lm and mlx-vlm; it is refused by name."""
    edit_config(copy, model_file="evil.py")
    (copy / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(UnsupportedModel, match=r"evil\.py"):
        inspect(copy)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 77}}, 77),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": "many"}, None),
    ],
)
def test_context_length_of_other_layouts(copy: Path, changes: dict[str, Any], expected: int | None) -> None:
    """Nested configs are understood; a checkpoint that does not say has none."""
    edit_config(copy, **changes)
    assert inspect(copy).context_length == expected


def test_every_error_has_a_hint(tmp_path: Path) -> None:
    """A user is told what to do."""
    with pytest.raises(LibMlxError) as caught:
        inspect(tmp_path)
    assert caught.value.hint
