"""`lib-mlx service install | uninstall`: servers that the system starts."""

from __future__ import annotations

import typer

from lib_mlx.cli import serve
from lib_mlx.cli.service import DEFAULT, Name

app = typer.Typer(no_args_is_help=True, help="Have the system start a server at login: systemd or launchd.")


@app.command()
def install(
    models: serve.Models = None,
    host: serve.Host = None,
    port: serve.Port = None,
    uds: serve.Uds = None,
    api_key: serve.ApiKey = None,
    config: serve.Config = None,
    hosts: serve.Hosts = None,
    name: Name = DEFAULT,
) -> None:
    """Write a unit for the user's own service manager, and print the command that starts it."""
    from lib_mlx.service import units
    from lib_mlx.settings import config_file, load_settings

    chosen = serve.overrides(models, host, port, uds, api_key, config)
    load_settings(chosen, file=config)
    path = units.install(name, serve.as_arguments(chosen, config_file(config), hosts))
    typer.echo(f"{path} is written. To start it, now and at every login:")
    typer.echo(f"  {units.start_command(name)}")


@app.command()
def uninstall(name: Name = DEFAULT) -> None:
    """Remove the unit; print the command that stops the service first."""
    from lib_mlx.service import units

    path = units.unit_path(name)
    if not units.uninstall(name):
        typer.echo(f"There is no {path}.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{path} is removed. If it still runs: {units.stop_command(name)}")
