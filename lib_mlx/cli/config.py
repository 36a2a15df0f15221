"""`lib-mlx config`: what C programs are built with."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lib_mlx.installation import installation

app = typer.Typer(invoke_without_command=True)


@app.callback()
def config(
    context: typer.Context,
    cflags: Annotated[bool, typer.Option("--cflags", help="Flags for the compiler.")] = False,
    libs: Annotated[bool, typer.Option("--libs", help="Flags for the linker, with a run path.")] = False,
    prefix: Annotated[bool, typer.Option("--prefix", help="The package's folder: for CMAKE_PREFIX_PATH.")] = False,
    library: Annotated[bool, typer.Option("--library", help="The shared library, to be opened at run time.")] = False,
    pkgconfig: Annotated[bool, typer.Option("--pkgconfig", help="The folder of lib_mlx.pc.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """Tell where the C library is and how to build with it: cc host.c $(lib-mlx config --cflags --libs)."""
    found = installation()
    values = {
        "cflags": found.cflags,
        "libs": found.libs,
        "prefix": str(found.prefix),
        "library": str(found.library),
        "pkgconfig": str(found.pkgconfig),
    }
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    wanted = {"cflags": cflags, "libs": libs, "prefix": prefix, "library": library, "pkgconfig": pkgconfig}
    if not any(wanted.values()):
        typer.echo(context.get_help())
        raise typer.Exit(2)
    typer.echo(" ".join(values[name] for name, asked in wanted.items() if asked))
