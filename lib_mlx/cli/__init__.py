"""The command line `lib-mlx`: one module per command, imported when the command runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lib_mlx import LibMlxError, __version__
from lib_mlx.cli import (
    agent,
    bench,
    bundle,
    chat,
    config,
    convert,
    doctor,
    evaluate,
    export,
    ground,
    models,
    openapi,
    pull,
    remote,
    run,
    serve,
    service,
    train,
    units,
)
from lib_mlx.cli.errors import EXIT_CODES, exit_code

_EPILOG = "Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="lib-mlx",
    help="Local language models inside an app.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("start")(service.start)
app.command("stop")(service.stop)
app.command("restart")(service.restart)
app.command("status")(service.status)
app.command("logs")(service.logs)
app.command("ps")(remote.ps)
app.command("load")(remote.load)
app.command("unload")(remote.unload)
app.command("pull")(pull.pull)
app.command("list")(models.list_models)
app.command("show")(models.show)
app.command("import")(models.import_model)
app.command("rm")(models.rm)
app.command("verify")(models.verify)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.command("openapi")(openapi.openapi)
app.command("convert")(convert.convert)
app.command("quantize")(convert.quantize)
app.command("train")(train.train)
app.command("fuse")(convert.fuse)
app.command("bundle")(bundle.bundle)
app.command("ground")(ground.ground)
app.command("agent")(agent.agent)
app.add_typer(evaluate.app, name="eval")
app.add_typer(export.app, name="export")
app.add_typer(config.app, name="config")
app.add_typer(units.app, name="service")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lib-mlx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Local language models inside an app."""


def main() -> None:
    """Run the command line and exit with its code; errors go to stderr as what, why and how to fix it."""
    try:
        app()
    except LibMlxError as error:
        typer.echo(f"error: {error.message}", err=True)
        if error.hint:
            typer.echo(f"  fix: {error.hint}", err=True)
        sys.exit(exit_code(error))
    except OSError as error:  # a full disk, a folder that cannot be written
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
