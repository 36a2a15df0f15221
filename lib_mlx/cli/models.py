"""`lib-mlx list` and `show`: the models on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lib_mlx.cli.service import Json  # noqa: TC001 - typer reads the annotations


def list_models(as_json: Json = False) -> None:
    """List the models of the store and of the Hugging Face cache: name, size, source, directory."""
    from lib_mlx.models import store

    models = store.list_models()
    if as_json:
        rows = [{"name": m.name, "bytes": m.bytes, "source": m.source, "path": str(m.path)} for m in models]
        typer.echo(json.dumps(rows, indent=2))
        return
    if not models:
        typer.echo("There are no models on this machine yet. Fetch one with `lib-mlx pull smollm2`.", err=True)
        return
    width = max(len(model.name) for model in models)
    for model in models:
        typer.echo(f"{model.name:{width}}  {model.bytes / 1e6:9.1f} MB  {model.source:5}  {model.path}")


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A directory, .gguf file or name of `lib-mlx list`.")],
    as_json: Json = False,
) -> None:
    """Tell what a model's files say: architecture, size, quantisation, context, what it can do."""
    from lib_mlx.models import store
    from lib_mlx.registry import ModelSpec
    from lib_mlx.registry.facts import read_facts
    from lib_mlx.registry.slot import Slot

    facts = read_facts(Slot(ModelSpec(model, model)).entry())
    values = {
        "path": str(store.resolve(model, converts=False)),
        "family": facts.family,
        "weight_bytes": facts.weight_bytes,
        "quantization": facts.quantization,
        "context_length": facts.context_length,
        "capabilities": list(facts.capabilities),
    }
    if as_json:
        typer.echo(json.dumps({**values, "config": facts.config, "template": facts.template}, indent=2))
        return
    told = {
        "directory": values["path"],
        "architecture": facts.family,
        "weights": f"{facts.weight_bytes / 1e6:.1f} MB, {facts.quantization or 'of a type that is not said'}",
        "context": f"{facts.context_length} tokens" if facts.context_length else "not said",
        "can": ", ".join(facts.capabilities),
    }
    for name, value in told.items():
        typer.echo(f"{name:13} {value}")
