"""`lib-mlx list`: the models on this machine."""

from __future__ import annotations

import typer


def list_models() -> None:
    """List the models of the store and of the Hugging Face cache: name, size, source, directory."""
    from lib_mlx.models import store

    models = store.list_models()
    if not models:
        typer.echo("There are no models on this machine yet. Fetch one with `lib-mlx pull smollm2`.", err=True)
        return
    width = max(len(model.name) for model in models)
    for model in models:
        typer.echo(f"{model.name:{width}}  {model.bytes / 1e6:9.1f} MB  {model.source:5}  {model.path}")
