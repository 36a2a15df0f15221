"""Where a server's further models come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lib_mlx.config import ServerConfig, parse_config
from lib_mlx.errors import InvalidArgument
from lib_mlx.models import content
from lib_mlx.registry.sources import new_registry

if TYPE_CHECKING:
    from pathlib import Path


def test_models_of_the_configuration_and_of_a_file(tmp_path: Path) -> None:
    """Both are known by their ids, with their options; the path is another name."""
    file = tmp_path / "models.toml"
    file.write_text('[[models]]\nmodel_path = "/models/two"\nkeep_alive = "5m"\npinned = true\n')
    config = parse_config(
        ServerConfig, {"models": [{"model_path": "/models/one", "kv_bits": 8}], "models_file": str(file)}
    )
    registry = new_registry(config)
    one, two = registry.entries()
    assert (one.id, one.spec.config.kv_bits, one.spec.keep_alive_s) == ("one", 8, None)
    assert (two.id, two.spec.pinned, two.spec.keep_alive_s) == ("two", True, 300)
    assert registry.find("/models/two").id == "two"


@pytest.mark.parametrize(
    "text", ["[[models]]\n", "x = 1\n", "[[models]]\nmodel_path = 3\n", "[[models]]\nmodel_pth = 'x'\n", "["]
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str) -> None:
    """It is refused, by its name."""
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=r"models\.toml"):
        new_registry(parse_config(ServerConfig, {"models_file": str(file)}))


def test_two_models_of_one_name() -> None:
    """That is an error: one could never be asked for."""
    with pytest.raises(InvalidArgument, match="Two models are named 'x'"):
        new_registry(parse_config(ServerConfig, {"models": [{"model_path": "/a/x"}, {"model_path": "/b/x"}]}))


def test_the_model_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, crafted: Path) -> None:
    """With `model_store`, what is pulled is served, also what is pulled later."""
    monkeypatch.setenv("LIB_MLX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    registry = new_registry(parse_config(ServerConfig, {"model_store": True}))
    assert registry.entries() == []
    content.import_model(crafted, "pulled")
    assert [entry.id for entry in registry.entries()] == ["pulled"]
