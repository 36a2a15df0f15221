from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.config import parse_config
from lib_mlx.training.config import TrainConfig
from tests.checkpoints.tiny import build_tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CODES = {"red": "alpha", "green": "bravo", "blue": "charlie", "pink": "delta"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing yet."""
    return build_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write objects, one a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """Questions and answers to be learnt by heart."""
    rows = [{"prompt": name, "completion": code} for name, code in CODES.items()] * 12
    return write_jsonl(tmp_path / "codes.jsonl", rows)


@pytest.fixture
def config(tiny: Path, codes: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Return a function that makes a configuration."""

    def make(**values: Any) -> TrainConfig:
        base = {
            "model_path": str(tiny),
            "data_path": str(codes),
            "output_path": str(tmp_path / "out"),
            "method": "full",
            "learning_rate": 2e-3,
            "batch_size": 8,
        }
        return parse_config(TrainConfig, {**base, **values})

    return make
