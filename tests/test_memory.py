"""Memory: what is refused, and what comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from lib_mlx import memory
from lib_mlx.engine import engine
from lib_mlx.errors import InsufficientMemory
from lib_mlx.models.checkpoint import inspect

if TYPE_CHECKING:
    from pathlib import Path


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(crafted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error states what is needed and what there is."""

    class Tiny:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Tiny)
    with pytest.raises(InsufficientMemory, match=r"needs 0\.00 GB; 0\.00 GB are available"):
        engine.load(inspect(crafted))


def test_resident_bytes() -> None:
    """The figure is the process's own."""
    assert memory.resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


ROUNDS = """
import json, sys
import lib_mlx
from lib_mlx.memory import resident_bytes

rounds = []
for _ in range(10):
    with lib_mlx.load_model(sys.argv[1]) as model:
        model.generate("hello", max_tokens=8)
        loaded = resident_bytes()
        rounds.append([loaded, model.unload().after_bytes])
print(json.dumps(rounds))
"""


@pytest.mark.alone
@pytest.mark.model
@pytest.mark.slow
def test_ten_rounds_of_loading(smollm2: Path) -> None:
    """What a load takes, the unload gives back: the process does not grow from round to round."""
    command = [sys.executable, "-c", ROUNDS, str(smollm2)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, ran.stderr
    loaded, after = zip(*json.loads(ran.stdout), strict=True)
    assert max(loaded) < 1.15 * loaded[0]
    assert max(after) < 1.15 * after[0]
