"""How a checkpoint makes one vector of a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.models.pooling import Pooling, read_pooling

if TYPE_CHECKING:
    from pathlib import Path

NORMALISED = [{"type": "sentence_transformers.models.Pooling"}, {"type": "sentence_transformers.models.Normalize"}]


@pytest.mark.parametrize(
    ("pooling", "modules", "expected"),
    [
        (None, None, Pooling("mean", normalise=True)),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, NORMALISED, Pooling("last", True)),
        ({"pooling_mode_cls_token": True}, NORMALISED[:1], Pooling("first", False)),
        ({"pooling_mode_mean_tokens": True}, None, Pooling("mean", True)),
        ([], {}, Pooling("mean", True)),
    ],
)
def test_reading(tmp_path: Path, pooling: Any, modules: Any, expected: Pooling) -> None:
    """What sentence-transformers wrote holds; without it the mean at length one."""
    if pooling is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if modules is not None:
        (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert read_pooling(tmp_path) == expected


def test_files_that_are_no_json(tmp_path: Path) -> None:
    """They say nothing."""
    (tmp_path / "modules.json").write_text("{")
    assert read_pooling(tmp_path) == Pooling()
