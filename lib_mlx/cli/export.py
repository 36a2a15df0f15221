"""`lib-mlx export`: parts of a model in other formats."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

app = typer.Typer(help="Write parts of a model in other formats.", no_args_is_help=True)


@app.callback()
def _export() -> None:
    """Write parts of a model in other formats."""


@app.command("onnx")
def onnx(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A GUI-Actor: a directory or a name of `lib-mlx list`.")
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write to; made if missing.")],
) -> None:
    """Write a GUI-Actor's vision_tower.onnx and pointer_head.onnx."""
    from lib_mlx.engine.imports import import_on_worker
    from lib_mlx.engine.worker import get_worker
    from lib_mlx.models import store

    work = import_on_worker("lib_mlx.export.checkpoint")
    for path in get_worker().run(work.export_onnx, store.resolve(model), directory):
        typer.echo(path)
