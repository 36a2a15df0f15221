"""`lib-mlx serve`: a server in the foreground."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lib_mlx.cli.completion import model_names

if TYPE_CHECKING:
    from lib_mlx.service.server import ServerAddress

Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help="Serve these, loaded at the start.", autocompletion=model_names),
]
Host = Annotated[str | None, typer.Option(help="Address to bind; only loopback unless named otherwise.")]
Port = Annotated[int | None, typer.Option(help="8642 if not configured; 0 picks a free one.")]
Uds = Annotated[str | None, typer.Option(help="Listen on this Unix socket instead.")]
ApiKey = Annotated[str | None, typer.Option(help="What clients must send; 'auto' makes one up.")]
Hosts = Annotated[
    Path | None,
    typer.Option(help="Divide MODEL among the machines of this file, mlx.launch's; the first is this one."),
]
Config = Annotated[Path | None, typer.Option(help="A configuration file instead of the one that is found.")]


def overrides(
    models: list[str] | None,
    host: str | None,
    port: int | None,
    uds: str | None,
    api_key: str | None,
    config: Path | None,
) -> dict[str, Any]:
    """Return what the command line says, in the shape of the settings; models of the file are meant by their names."""
    from lib_mlx.settings import load_settings

    server = {"host": host, "port": port, "uds": uds, "api_key": api_key}
    chosen: dict[str, Any] = {"server": {key: value for key, value in server.items() if value is not None}}
    if models:
        known = load_settings(file=config).models
        chosen["models"] = {
            **{model: {"preload": True} for model in models if model in known},
            **{_name(model): {"path": _path(model), "preload": True} for model in models if model not in known},
        }
    return chosen


def as_arguments(chosen: dict[str, Any], config: Path | None, hosts: Path | None = None) -> list[str]:
    """Return the arguments that say the same again, from any directory."""
    arguments = [str(model.get("path", name)) for name, model in chosen.get("models", {}).items()]
    for key, value in chosen["server"].items():
        arguments += [f"--{key.replace('_', '-')}", str(value)]
    for key, file in (("--config", config), ("--hosts", hosts)):
        arguments += [key, str(file.resolve())] if file else []
    return arguments


def _name(model: str) -> str:
    return model if "/" in model and not os.path.exists(model) else os.path.basename(model.rstrip("/"))  # noqa: PTH110, PTH119


def _path(model: str) -> str:
    return os.path.abspath(model) if os.path.exists(model) else model  # noqa: PTH100, PTH110 - Path() loses "./"


def serve(  # noqa: PLR0917 - typer makes options of them
    models: Models = None,
    host: Host = None,
    port: Port = None,
    uds: Uds = None,
    api_key: ApiKey = None,
    config: Config = None,
    ready_json: Annotated[
        bool, typer.Option("--ready-json", help="Print one line of JSON when it is ready, and nothing else.")
    ] = False,
    hosts: Hosts = None,
    service: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve models until Ctrl-C. What is not named here is loaded when it is first asked for."""
    from lib_mlx.logs import open_log
    from lib_mlx.service.server import run
    from lib_mlx.service.state import log_path
    from lib_mlx.settings import load_settings

    if service is not None and not sys.stdin.isatty():
        sys.stdin.read()  # `service.control` closes it when it has written down who we are
    chosen = overrides(models, host, port, uds, api_key, config)
    settings = load_settings(chosen, file=config)
    log = None
    if service is not None:
        log = open_log(str(log_path(service)), settings.service.log_level, max_bytes=settings.service.log_bytes)
    arguments, tell = as_arguments(chosen, config, hosts), _tell_json if ready_json else _tell
    if hosts is None:
        run(settings, arguments, service, tell)
    else:
        from lib_mlx.service.ranks import run_ranks

        run_ranks(settings, arguments, service, tell, hosts.resolve())
    if log is not None:
        log.close()


def _tell_json(server: ServerAddress) -> None:
    ready = {"base_url": server.base_url, "pid": os.getpid(), "uds": server.uds, "api_key": server.api_key}
    typer.echo(json.dumps(ready))


def _tell(server: ServerAddress) -> None:
    typer.echo(f"Serving at {server.uds or server.base_url} (Ctrl-C stops). For clients:")
    for line in environment_lines(server.base_url, server.api_key):
        typer.echo(f"  {line}")


def environment_lines(base_url: str, api_key: str | None) -> list[str]:
    """Return the two lines that point OpenAI's clients at a server."""
    return [f"export OPENAI_BASE_URL={base_url}/v1", f"export OPENAI_API_KEY={api_key or 'unused'}"]
