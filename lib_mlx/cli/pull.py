"""`lib-mlx pull`: fetch a model."""

from __future__ import annotations

from typing import Annotated

import typer

from lib_mlx.cli.completion import known_names


def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="A short name (smollm2) or a Hugging Face repository (owner/name).", autocompletion=known_names
        ),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the model's path.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")] = None,
) -> None:
    """Fetch a model and print its directory as the last line of stdout.

    What is there already is not fetched again; an interrupted download goes on where it stopped.
    """
    from lib_mlx.cli.progress import reporter
    from lib_mlx.models import download

    with reporter(quiet) as report:
        path = download.pull(name, report, revision)
    typer.echo(path)
