"""Anthropic's own clients of the served crafted model, and a model that reasons without end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anthropic
import pytest

import lib_mlx
from tests.checkpoints import SCRIPTS, Script, build

if TYPE_CHECKING:
    from collections.abc import Iterator


def new_client(base_url: str) -> anthropic.Anthropic:
    """A client that does not try again."""
    return anthropic.Anthropic(base_url=base_url, api_key="unused", max_retries=0, timeout=30)


@pytest.fixture(scope="session")
def claude(server: lib_mlx.Server) -> Iterator[anthropic.Anthropic]:
    """Anthropic's own client, given the server's bare base URL."""
    with new_client(server.base_url) as client:
        yield client


@pytest.fixture(scope="session", params=["", "/anthropic"])
def any_claude(server: lib_mlx.Server, request: pytest.FixtureRequest) -> Iterator[anthropic.Anthropic]:
    """Anthropic's own client, given each base URL that works."""
    with new_client(server.base_url + request.param) as client:
        yield client


@pytest.fixture(scope="module")
def ponderer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    """A client of a model whose script `ponder` reasons without end."""
    ponder = Script("ponder", ("<think>", " hm", " so", " then"), end="loop")
    path = build(tmp_path_factory.mktemp("ponder") / "model", scripts={**SCRIPTS, "ponder": ponder})
    with (
        lib_mlx.load_model(path, model_id="crafted") as model,
        model.start_server() as server,
        new_client(server.base_url) as client,
    ):
        yield client
