"""`lib-mlx list`, `show`, `import`, `rm`, `verify`: the models on this machine."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from lib_mlx.cli.completion import model_names
from lib_mlx.cli.run import ModelName  # noqa: TC001 - typer reads the annotations
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
    model: ModelName,
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


def import_model(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A model directory in Hugging Face or MLX layout.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it; the directory's name if not given.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the model's path.")] = False,
) -> None:
    """Take a model directory into the store: linked or cloned where the disk can, each file once."""
    from lib_mlx.cli.progress import reporter
    from lib_mlx.models import content

    with reporter(quiet) as report:
        path = content.import_model(
            source.expanduser(),
            name or source.resolve().name,
            progress=lambda done, total: report("import", done, total) if report else None,
        )
    typer.echo(path)


def rm(
    name: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A name of `lib-mlx list`, of the store's.", autocompletion=model_names),
    ],
) -> None:
    """Remove a model from the store, with the files that no other one has."""
    from lib_mlx.models import content

    typer.echo(f"{name} is removed: {content.remove(name) / 1e6:.1f} MB are free again.")


def verify() -> None:
    """Read every file of the store and the Hugging Face cache and compare it with its sum.

    The exit code is 1 if one is damaged.
    """
    from lib_mlx.models import content, hub

    faults = [*content.verify(_tell), *hub.verify_cache(_tell)]
    for fault in faults:
        typer.echo(fault)
    if faults:
        raise typer.Exit(1)
    typer.echo("Every file is as it was stored.")


def _tell(name: str) -> None:
    typer.echo(name, err=True)
