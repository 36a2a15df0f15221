"""`lib-mlx ps | load | unload`: the models of a running server."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from lib_mlx.cli.client import Client
from lib_mlx.cli.service import DEFAULT, Json, Name

_POLL_S = 0.2
Url = Annotated[str | None, typer.Option("--url", help="A server at this address, instead of a service.")]
ApiKey = Annotated[str | None, typer.Option(help="What that server asks for.")]


def client(name: str, url: str | None, api_key: str | None) -> Client:
    """Return a client of the service, or of the server at `url`."""
    from lib_mlx.service.state import read_state

    return Client(url.rstrip("/").removesuffix("/v1"), api_key) if url else Client.of(read_state(name))


def ps(name: Name = DEFAULT, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the models that a server has in memory, with their memory, requests and time left."""
    models = client(name, url, api_key).ask("GET", "/v1/models")["data"]
    loaded = [model for model in models if model["status"] != "available"]
    if as_json:
        typer.echo(json.dumps(loaded, indent=2))
        return
    if not loaded:
        typer.echo("No model is loaded. One is when it is first asked for, or with `lib-mlx load MODEL`.", err=True)
        return
    width = max(len(model["id"]) for model in loaded)
    for model in loaded:
        typer.echo(
            f"{model['id']:{width}}  {_state(model):14}  {model['memory_bytes'] / 1e6:8.1f} MB"
            f"  {model['requests']} requests  {_left(model)}".rstrip()
        )


def _state(model: dict[str, Any]) -> str:
    if model["status"] == "loading":
        return f"loading {model['progress']:.0%}"
    if model["error"] is not None:
        return f"failed: {model['error']['message']}"
    return str(model["status"])


def _left(model: dict[str, Any]) -> str:
    left = model["expires_in_s"]
    return "" if left is None else f"unloaded in {left:.0f} s"


def load(
    model: Annotated[str, typer.Argument(help="The name of one of the server's models.")],
    name: Name = DEFAULT,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Have a server load a model; returns when it is ready."""
    from concurrent.futures import ThreadPoolExecutor, wait

    from lib_mlx.cli.progress import loading_bar

    asked = client(name, url, api_key)
    path = f"/v1/models/{quote(model)}"
    with ThreadPoolExecutor(1) as pool, loading_bar() as show:
        answer = pool.submit(asked.ask, "POST", f"{path}/load")
        while wait([answer], timeout=_POLL_S).not_done:
            show("loading", asked.ask("GET", path)["progress"])
    loaded = answer.result()
    typer.echo(f"{loaded['id']} is {loaded['status']}: {loaded['memory_bytes'] / 1e6:.1f} MB")


def unload(
    model: Annotated[str, typer.Argument(help="The name of one of the server's models.")],
    name: Name = DEFAULT,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Have a server give a model's memory back."""
    client(name, url, api_key).ask("DELETE", f"/v1/models/{quote(model)}")
    typer.echo(f"{model} is unloaded")
