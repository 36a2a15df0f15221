"""`lib-mlx config`: the settings in force, and what C programs are built with."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path | None, typer.Option("--config", help="This file instead of the one that is found.")]
_NEW_FILE = """\
# lib-mlx's settings. `lib-mlx config show` prints all there are; `lib-mlx config check` tells what is wrong.

# [server]
# port = 8642

# [models]
# small = "smollm2"
"""

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
    """Show, edit and check the settings; tell how to build with the C library.

    cc host.c $(lib-mlx config --cflags --libs)
    """
    if context.invoked_subcommand is not None:
        return
    from lib_mlx.installation import installation

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


@app.command()
def show(config: File = None) -> None:
    """Print all settings in force, as TOML's tables would have them, and where they come from."""
    from lib_mlx.settings import config_file, load_settings

    typer.echo(f"# from {config_file(config) or 'no file'}, the environment and the defaults")
    values = load_settings(file=config).model_dump(mode="json", exclude_none=True)
    if "api_key" in values["server"]:
        values["server"]["api_key"] = "(not shown)"
    for table, keys in values.items():
        typer.echo(f"\n[{table}]")
        for key, value in keys.items():
            typer.echo(f"{key} = {json.dumps(value)}")


@app.command()
def path() -> None:
    """Print the configuration file that counts, or where one would be looked for."""
    from lib_mlx.settings import config_file, user_config_file

    typer.echo(config_file() or user_config_file())


@app.command()
def edit() -> None:
    """Open the configuration file in $VISUAL or $EDITOR, a new one if there is none, and check it afterwards."""
    from lib_mlx.settings import config_file, user_config_file

    file = config_file() or user_config_file()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_NEW_FILE)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    subprocess.run([*shlex.split(editor), str(file)], check=False)  # noqa: S603 - the user's own editor
    check(file)


@app.command()
def check(config: File = None) -> None:
    """Tell whether the settings are right: an unknown key or a wrong value is named with its file and line."""
    from lib_mlx.settings import config_file, load_settings

    load_settings(file=config)
    typer.echo(f"{config_file(config) or 'The environment'} is right.")
