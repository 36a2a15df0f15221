"""`lib-mlx bundle`: a folder to ship inside an app."""

from __future__ import annotations

import time
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer


def bundle(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make, or to check.")],
    model: Annotated[str | None, typer.Option(help="Put this model into it, too.")] = None,
    vision: Annotated[bool, typer.Option("--vision", help="With the packages for images and audio.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Make nothing: tell whether DIR is whole and works.")] = False,
) -> None:
    """Make a folder with the library, a Python, its packages and a model, that works wherever it is moved."""
    from lib_mlx import bundle as bundles

    begun = time.monotonic()
    if check:
        faults = bundles.check(directory)
        for fault in faults:
            typer.echo(fault, err=True)
        if faults:
            raise typer.Exit(1)
        typer.echo(f"{directory} is whole and works ({time.monotonic() - begun:.1f} s)")
        return
    made = bundles.create(directory, model=model, vision=vision, progress=lambda stage: typer.echo(stage, err=True))
    typer.echo(
        f"{made.path}: {made.bytes / 1e6:.0f} MB, {made.bytes / made.parts_bytes:.2f} times its parts "
        f"({time.monotonic() - begun:.0f} s)"
    )
