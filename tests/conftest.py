"""Fixtures shared by all tests: crafted checkpoints and the one real model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import build_ffi
from tests.checkpoints import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def crafted_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a family's crafted checkpoint, built once per session."""
    root = tmp_path_factory.mktemp("crafted")

    def family(name: str) -> Path:
        path = root / name
        return path if path.exists() else build(path, name)

    return family


@pytest.fixture(scope="session")
def crafted(crafted_family: Callable[[str], Path]) -> Path:
    """The crafted checkpoint of the qwen family."""
    return crafted_family("qwen")


@pytest.fixture(scope="session")
def library() -> Path:
    """liblib_mlx of this checkout, up to date."""
    return build_ffi.main()[0]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, pulled once into the user's own store; for tests marked `model`."""
    from lib_mlx.models.download import pull

    return pull("smollm2")


def pytest_unconfigure() -> None:
    """Release this thread's MLX streams: without it the interpreter aborts at exit."""
    if mx := sys.modules.get("mlx.core"):
        mx.clear_streams()
