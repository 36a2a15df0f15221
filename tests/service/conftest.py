"""Models that are divided, and the same ones undivided."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

import lib_mlx
from tests.checkpoints.tiny import build_tiny
from tests.service.divided import Served, ask, kill_all, start, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _nothing_left() -> Iterator[None]:
    """Leave no service behind."""
    yield
    kill_all()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose heads can be divided by two and by three."""
    return build_tiny(tmp_path_factory.mktemp("sharded") / "tiny", heads=6, kv_heads=6, spread=0.3)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Served]:
    """The same model on two processes."""
    running = start(tmp_path_factory.mktemp("ranks"), model, 2, "--port", "0")
    yield running
    stop(running)


@pytest.fixture(scope="session")
def alone(model: Path) -> Iterator[Callable[..., str]]:
    """Return a function that asks the model in one process."""
    loaded = lib_mlx.load_model(str(model), cpu_weights="float32")
    server = loaded.start_server()
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="-", max_retries=0)
    yield lambda prompt, **options: ask(client, prompt, **options)
    client.close()
    loaded.unload()
