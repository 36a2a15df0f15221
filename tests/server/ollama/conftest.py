"""Ollama's own client for the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ollama
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lib_mlx


@pytest.fixture(scope="session")
def client(server: lib_mlx.Server) -> Iterator[ollama.Client]:
    """Ollama's own client of the server."""
    with ollama.Client(host=server.base_url, timeout=30) as client:
        yield client
