"""`lib-mlx start | stop | restart | status | logs`: a server in the background."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from lib_mlx.cli import serve

if TYPE_CHECKING:
    from pathlib import Path

    from lib_mlx.service.state import ServiceState

DEFAULT = "default"
_HEALTH_S = 2.0
Name = Annotated[str, typer.Option("--name", help="Which service, where there are several.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def start(
    models: serve.Models = None,
    host: serve.Host = None,
    port: serve.Port = None,
    uds: serve.Uds = None,
    api_key: serve.ApiKey = None,
    config: serve.Config = None,
    hosts: serve.Hosts = None,
    name: Name = DEFAULT,
) -> None:
    """Start a server in the background; returns when it is healthy, or says why it is not."""
    from lib_mlx.service import control
    from lib_mlx.settings import config_file, load_settings

    chosen = serve.overrides(models, host, port, uds, api_key, config)
    settings = load_settings(chosen, file=config)  # what is wrong with them is told here, and not by a log
    arguments = serve.as_arguments(chosen, config_file(config), hosts)  # it runs in another directory
    state, started = control.start(name, arguments, settings.service.start_timeout_s)
    _tell_running(state, "Started" if started else "Already running")


def _tell_running(state: ServiceState, what: str) -> None:
    typer.echo(f"{what}: {state.uds or state.base_url} (pid {state.pid}). For clients:")
    for line in serve.environment_lines(state.base_url or "", state.api_key):
        typer.echo(f"  {line}")


def stop(name: Name = DEFAULT) -> None:
    """Stop a service: kindly, and by force if it does not end in time."""
    from lib_mlx.service import control
    from lib_mlx.service.state import read_state
    from lib_mlx.settings import load_settings

    before = read_state(name)
    control.stop(name, load_settings().service.stop_timeout_s)
    typer.echo("Stopped." if before.status in {"starting", "running", "stopping"} else f"It was {before.status}.")


def restart(name: Name = DEFAULT) -> None:
    """Stop a service and start it with what it was started with."""
    from lib_mlx.service import control
    from lib_mlx.service.state import read_state
    from lib_mlx.settings import load_settings

    settings = load_settings().service
    arguments = read_state(name).arguments
    control.stop(name, settings.stop_timeout_s)
    state, _ = control.start(name, arguments, settings.start_timeout_s)
    _tell_running(state, "Restarted")


def status(
    name: Annotated[str | None, typer.Option("--name", help="Only this one.")] = None, as_json: Json = False
) -> None:
    """Tell how the services are. The exit code is 0 if one of them runs, else 1."""
    from lib_mlx.service.state import known_services, log_path, read_state

    states = [read_state(name)] if name else (list(known_services()) or [read_state(DEFAULT)])
    healths = [_health(state) if state.status == "running" else None for state in states]
    if as_json:
        told = [{**state.to_json(), "health": health} for state, health in zip(states, healths, strict=True)]
        typer.echo(json.dumps(told, indent=2))
    for state, health in [] if as_json else zip(states, healths, strict=True):
        line = f"{state.name:12} {state.status:9}"
        if state.status == "running":
            line += f" {state.uds or state.base_url} (pid {state.pid})"
            if health != "ok":
                line += f", {health}"
            if state.restarts:
                line += f", ranks started again: {state.restarts}"
        elif state.status == "crashed":
            line += f" process {state.pid} is gone and has not said why: lib-mlx logs --name {state.name}"
        elif state.error is not None:
            line += f" {state.error['message']} {state.error['hint']}"
        typer.echo(line.rstrip())
        if state.status == "crashed":
            for tail in _last_lines(log_path(state.name), 5):
                typer.echo(f"    {tail}")
    if not any(state.status == "running" for state in states):
        raise typer.Exit(1)


def _health(state: ServiceState) -> str:
    """Return what its server says of itself, or that it says nothing."""
    from lib_mlx.cli.client import Client
    from lib_mlx.errors import LibMlxError

    try:
        return Client.of(state, timeout_s=_HEALTH_S).health()
    except LibMlxError:
        return "not answering"


def logs(
    name: Name = DEFAULT,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many of the last ones.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it is written, until Ctrl-C.")] = False,
) -> None:
    """Print the end of a service's log."""
    from lib_mlx.service.state import log_path

    path = log_path(name)
    for line in _last_lines(path, lines):
        typer.echo(line)
    while follow:
        size = path.stat().st_size if path.exists() else 0
        time.sleep(0.2)
        now = path.stat().st_size if path.exists() else 0
        if now != size:
            with path.open("rb") as file:
                file.seek(size if now > size else 0)  # it was begun anew
                typer.echo(file.read().decode(errors="replace"), nl=False)


def _last_lines(path: Path, count: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            return file.read().decode(errors="replace").splitlines()[-count:] if count else []
    except OSError:
        return []
