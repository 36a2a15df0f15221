"""`lib-mlx openapi`: the HTTP API's description."""

from __future__ import annotations

import json

import typer


def openapi() -> None:
    """Print the OpenAPI document that a server has at /openapi.json."""
    from lib_mlx.config import ServerConfig
    from lib_mlx.registry import Registry
    from lib_mlx.runtime import get_runtime
    from lib_mlx.server.app import create_app
    from lib_mlx.server.openapi import document
    from lib_mlx.server.state import ServerState

    state = ServerState(Registry(), ServerConfig(), get_runtime())
    typer.echo(json.dumps(document(create_app(state).routes), indent=2))
