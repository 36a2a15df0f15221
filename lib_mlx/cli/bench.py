"""`lib-mlx bench`: how fast a model answers, here and at another server, in turn."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, Any

import typer

from lib_mlx.cli.run import ModelName  # noqa: TC001 - typer reads the annotations
from lib_mlx.cli.service import Json  # noqa: TC001


def bench(
    model: ModelName,
    *,
    against: Annotated[
        str | None, typer.Option(help="Compare with an OpenAI-compatible server at this URL, in the same run.")
    ] = None,
    against_model: Annotated[
        str | None, typer.Option(help="What that server calls the model; the same if not given.")
    ] = None,
    against_key: Annotated[str | None, typer.Option(help="What that server asks for.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="How often; the medians count.")] = 3,
    words: Annotated[int, typer.Option(min=1, help="Of the long prompt.")] = 300,
    tokens: Annotated[int, typer.Option(min=2, help="Of an answer.")] = 64,
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios as an SVG picture.")] = None,
    as_json: Json = False,
) -> None:
    """Measure time to first token, tokens/s of one stream and of several, and memory; also of another server."""
    if plot is not None and against is None:
        raise typer.BadParameter("The picture is of ratios: name the other server with --against.")
    import lib_mlx
    from lib_mlx.cli.generate import load
    from lib_mlx.cli.measurement import Server, compare, picture, ratio, table
    from lib_mlx.memory import resident_bytes

    def tell(text: str) -> None:
        typer.echo(text, err=True)

    with load(model, prefix_cache_bytes=0) as loaded, loaded.start_server() as served:
        servers = [Server("lib_mlx", served.base_url, served.model_id)]
        if against:
            url = against.rstrip("/").removesuffix("/v1")
            servers.append(Server("the other", url, against_model or served.model_id, against_key))
        found = compare(servers, runs, words, tokens, tell)
        resident = resident_bytes()
    told: dict[str, Any] = {"version": lib_mlx.__version__, "memory_bytes": resident, "medians": found}
    if against:
        told["ratios"] = {name: ratio(name, ours, found["the other"][name]) for name, ours in found["lib_mlx"].items()}
        if plot is not None:
            plot.write_text(picture(told["ratios"], against))
    typer.echo(json.dumps(told, indent=2) if as_json else table(told))
