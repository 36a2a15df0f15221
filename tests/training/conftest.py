from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.config import parse_config
from lib_mlx.training.config import TrainConfig
from tests.checkpoints.tiny import build_tiny
from tests.commands import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_RUN = """
import json, sys
from lib_mlx.config import parse_config
from lib_mlx.training.config import TrainConfig
from lib_mlx.training.trainer import train
train(parse_config(TrainConfig, json.loads(sys.argv[1])), lambda progress: print(progress.step, flush=True))
"""
CODES = {"red": "alpha", "green": "bravo", "blue": "charlie", "pink": "delta"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing yet."""
    return build_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write objects, one a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train_until_killed(config: TrainConfig, step: int) -> None:
    """Train in a process that is killed when it has told of `step`."""
    command = [sys.executable, "-c", _RUN, config.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < step:
            pass
        process.send_signal(signal.SIGKILL)


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
