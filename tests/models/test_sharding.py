"""What a divided model cannot have, and what has to be alike on all hosts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.config import EngineConfig, parse_config
from lib_mlx.errors import ServerStartFailed, UnsupportedFeature
from lib_mlx.models import sharding
from lib_mlx.models.checkpoint import inspect

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "option",
    [
        {"adapter_path": "/adapter"},
        {"adapters": {"a": "/adapter"}},
        {"prompt_lookup": True},
        {"draft_model_path": "/draft"},
        {"prefix_cache_path": "/prefixes"},
        {"cpu_weights": "quantized"},
    ],
)
def test_options_that_need_the_whole_model(crafted: Path, option: dict[str, Any]) -> None:
    """Each is refused by its name."""
    with pytest.raises(UnsupportedFeature) as caught:
        sharding.check(inspect(crafted), parse_config(EngineConfig, option))
    (name,) = option
    assert caught.value.param == name
    assert repr(name) in caught.value.message


def test_options_that_do_not(crafted: Path) -> None:
    """All others are taken."""
    options = {"kv_bits": 8, "context_length": 100, "memory_limit_bytes": 1 << 30, "cpu_weights": "float32"}
    sharding.check(inspect(crafted), parse_config(EngineConfig, options))


def test_models_with_encoders(crafted: Path) -> None:
    """They are refused, as what they are."""
    with pytest.raises(UnsupportedFeature, match="images or sounds") as caught:
        sharding.check(replace(inspect(crafted), has_towers=True), EngineConfig())
    assert caught.value.param == "model"


def test_other_software() -> None:
    """A rank with other versions than rank 0 names package and versions."""
    here = sharding.software()
    sharding.check_software(here)
    with pytest.raises(ServerStartFailed, match=rf"mlx-lm {here['mlx-lm']}, and rank 0 has 0\.1"):
        sharding.check_software(here | {"mlx-lm": "0.1"})


def test_other_weights(crafted: Path, tmp_path: Path) -> None:
    """A rank whose files are not those of rank 0 is told so, though their sizes and shapes are the same."""
    copied = shutil.copytree(crafted, tmp_path / "copied")
    wanted = sharding.fingerprint(inspect(crafted))
    sharding.check_model(inspect(copied), wanted)
    (file,) = copied.glob("model*.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    file.write_bytes(data)
    with pytest.raises(ServerStartFailed, match=r"copied is not the one that rank 0 has"):
        sharding.check_model(inspect(copied), wanted)


def test_a_process_alone(crafted: Path) -> None:
    """A process that has not joined a group computes alone, and divides nothing."""
    assert sharding.group() is None
    assert sharding.ranks() == 1
    with pytest.raises(RuntimeError, match="no rank"):
        sharding.divide(None, inspect(crafted))
