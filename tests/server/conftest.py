"""A server on a crafted model, and clients for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import openai
import pytest

import lib_mlx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def crafted_model(crafted: Path) -> Iterator[lib_mlx.Model]:
    """The crafted qwen-family model behind the Python API."""
    with lib_mlx.load_model(crafted, model_id="crafted") as model:
        yield model


@pytest.fixture(scope="session")
def server(crafted_model: lib_mlx.Model) -> Iterator[lib_mlx.Server]:
    """The crafted model, served."""
    with crafted_model.start_server() as running:
        yield running


@pytest.fixture(scope="session")
def http(server: lib_mlx.Server) -> Iterator[httpx2.Client]:
    """A plain HTTP client of the server."""
    with httpx2.Client(base_url=server.base_url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def client(server: lib_mlx.Server) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of the server."""
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="unused", max_retries=0, timeout=30) as client:
        yield client
