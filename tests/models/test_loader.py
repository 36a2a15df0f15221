"""Loading checkpoints that are wrong in ways their files do not show."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.engine import engine
from lib_mlx.errors import CorruptModel, UnsupportedModel
from lib_mlx.models.checkpoint import inspect

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def copy(crafted: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return shutil.copytree(crafted, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_unknown_architecture(copy: Path) -> None:
    """It is `unsupported_model`, by name."""
    edit(copy / "config.json", model_type="abacus")
    with pytest.raises(UnsupportedModel, match="abacus"):
        engine.load(inspect(copy))


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_hidden_layers": 7}, {"num_attention_heads": "x"}])
def test_weights_that_do_not_fit_the_config(copy: Path, changes: dict[str, Any]) -> None:
    """They are `corrupt_model`."""
    edit(copy / "config.json", **changes)
    with pytest.raises(CorruptModel):
        engine.load(inspect(copy))


@pytest.mark.parametrize("text", ["{", "{}", ""])
def test_a_damaged_tokenizer(copy: Path, text: str) -> None:
    """It is `corrupt_model`, and names the tokenizer."""
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(CorruptModel, match="tokenizer"):
        engine.load(inspect(copy))


def test_code_in_a_tokenizer_is_not_run(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A tokenizer with code of its own is refused without running it or asking on the terminal."""
    (copy / "evil.py").write_text("print('EVIL')")
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    with pytest.raises(UnsupportedModel, match="code of its own"):
        engine.load(inspect(copy))
    assert "EVIL" not in "".join(capfd.readouterr())


def test_a_failed_load_leaves_no_weights_in_memory(copy: Path) -> None:
    """What was mapped before the error is freed."""
    import mlx.core as mx

    before = mx.get_active_memory()
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptModel):
        engine.load(inspect(copy))
    assert mx.get_active_memory() <= before
