"""Memory: what is refused, and what comes back."""

from __future__ import annotations

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
