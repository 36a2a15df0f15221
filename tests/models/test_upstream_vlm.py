"""What lib_mlx needs of mlx-vlm, and what it makes good. A failure here means: mlx-vlm changed, read its notes."""

from __future__ import annotations

import inspect as python
import json
import logging
import os
import shutil
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm import utils

from lib_mlx.errors import CorruptModel, UnsupportedModel
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_weights
from lib_mlx.models.upstream_vlm import import_mlx_vlm
from tests.fixtures import GUI
from tests.models.vision import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.models.loader import Weights


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return shutil.copytree(PLAIN, tmp_path / "model")


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors of a checkpoint."""
    file = path / "model.safetensors"
    loaded: Any = mx.load(str(file))
    changed = {name: array + 0 for name, array in change(loaded).items()}
    mx.eval(changed)
    mx.save_safetensors(str(file), changed)


def configure(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change a checkpoint's config.json."""
    file = path / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def load(path: Path) -> Weights:
    return load_weights(inspect(path), lambda _: None, lambda: False)


def text_logits(path: Path) -> Any:
    """What a checkpoint makes of a few tokens."""
    weights = load(path)
    network: Any = weights.network
    return np.array(network(mx.array([[5, 6, 7]]), cache=network.make_cache()))


def test_the_pinned_version() -> None:
    """The contracts below were read in this minor version."""
    assert version("mlx-vlm").startswith("0.7.")


def test_the_functions_that_are_replaced() -> None:
    """The loader calls these by their names in its module, and `load_model_weights` as we hand it on."""
    source = python.getsource(utils.load_model)
    assert all(f"{name}(" in source for name in ("load_config", "_load_safetensors", "load_model_weights"))
    parameters = list(python.signature(utils.load_model_weights).parameters)
    assert parameters[:4] == ["model", "config", "weights", "model_path"]
    assert python.signature(utils.load_model_weights).parameters["strict"].default is True


def test_loading_restores_what_it_replaces() -> None:
    """Others in the process use mlx-vlm as it is, and the environment and the root logger are the host's."""
    before = utils.load_config, utils._load_safetensors, utils.load_model_weights, dict(os.environ)
    load(PLAIN)
    assert before == (utils.load_config, utils._load_safetensors, utils.load_model_weights, dict(os.environ))
    assert not any(type(handler) is logging.StreamHandler for handler in logging.getLogger().handlers)


def test_a_stored_head_that_is_tied(copy: Path) -> None:
    """It changes nothing: the network has none of its own."""
    rewrite(copy, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    assert (text_logits(copy) == text_logits(PLAIN)).all()


def test_a_configuration_of_transformers_5(copy: Path) -> None:
    """A nested text part, new names of the rotation and nested names of tensors load the same network."""
    top = {"architectures", "model_type", "vision_config", "image_token_id", "video_token_id", "tie_word_embeddings"}

    def nest(config: dict[str, Any]) -> dict[str, Any]:
        text = {name: value for name, value in config.items() if name not in top}
        rotation = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
        del rotation["type"]
        text |= {"model_type": "qwen2_vl_text", "rope_parameters": rotation}
        return {**{name: config[name] for name in top}, "text_config": text}

    def rename(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name.replace("model.", "model.language_model.") if name.startswith("model.") else f"model.{name}": array
            for name, array in tensors.items()
        }

    configure(copy, nest)
    assert (text_logits(copy) == text_logits(PLAIN)).all()
    rewrite(copy, rename)
    assert (text_logits(copy) == text_logits(PLAIN)).all()


def test_missing_tensors_are_named(copy: Path) -> None:
    """Also those of the encoder, which upstream would leave at random."""
    rewrite(copy, lambda tensors: {name: array for name, array in tensors.items() if "visual.merger" not in name})
    with pytest.raises(CorruptModel, match=r"lacks vision_tower\.merger.* and 2 more"):
        load(copy)


def test_unknown_tensors_are_named(copy: Path) -> None:
    """They are not dropped."""
    rewrite(copy, lambda tensors: {**tensors, "visual.extra.weight": mx.zeros((2, 2))})
    with pytest.raises(CorruptModel, match=r"unknown tensors: vision_tower\.extra\.weight"):
        load(copy)


def test_a_pointer_head_is_kept_apart() -> None:
    """It is no part of the network, and there for whoever knows it."""
    vision = load(GUI / "models/tiny-gui-actor-qwen2vl").vision
    assert vision is not None
    assert len(vision.apart) == 14
    assert all(name.startswith("multi_patch_pointer_head.") for name in vision.apart)


def test_code_of_the_checkpoint_is_not_run(copy: Path) -> None:
    """`model_file` is refused unless trusted, though upstream would run it unasked."""
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    configure(copy, lambda config: {**config, "model_file": "evil.py"})
    with pytest.raises(UnsupportedModel, match=r"evil\.py"):
        load(copy)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "mlx_vlm", None)
    with pytest.raises(UnsupportedModel) as caught:
        import_mlx_vlm(inspect(PLAIN))
    assert caught.value.hint == "pip install 'lib-mlx[vision]'"


def test_an_unknown_architecture(copy: Path) -> None:
    """It is `unsupported_model`, by name."""
    configure(copy, lambda config: {**config, "model_type": "abacus_vl"})
    with pytest.raises(UnsupportedModel, match="abacus_vl"):
        load(copy)


def test_encoders_are_read_when_they_are_used() -> None:
    """Their weights take no memory before, unless that is asked for."""
    sizes = {}
    for lazy in (True, False):
        mx.clear_cache()
        before = mx.get_active_memory()
        weights = load_weights(inspect(PLAIN), lambda _: None, lambda: False, lazy_encoders=lazy)
        assert weights.vision is not None
        towers = sum(array.nbytes for array in weights.vision.towers())
        sizes[lazy] = mx.get_active_memory() - before
        del weights
    assert sizes[False] - sizes[True] >= towers > 100_000
