"""`lib-mlx eval`: how well a model does on published data."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from lib_mlx.cli.ground import Actor, MaxPixels  # noqa: TC001 - typer reads them
from lib_mlx.cli.service import Json  # noqa: TC001

if TYPE_CHECKING:
    from PIL.Image import Image

    from lib_mlx.grounding.result import Grounding

app = typer.Typer(help="Measure a model on published data.", no_args_is_help=True)


@app.callback()
def _evaluate() -> None:
    """Measure a model on published data."""


@app.command("screenspot")
def screenspot(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="ScreenSpot, ScreenSpot-v2 or ScreenSpot-Pro.")],
    *,
    model: Actor,
    k: Annotated[int, typer.Option("--k", min=1, help="The candidates that count for hit@k.")] = 3,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many examples.")] = None,
    area: Annotated[
        int | None, typer.Option(min=1, help="Scale screenshots to so many pixels; published for Pro: 5760000.")
    ] = None,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Print hit@1, overlap@1, hit@k and overlap@k: by group and kind of target, and of all."""
    from lib_mlx.cli.generate import load
    from lib_mlx.grounding.screenspot import METRICS, averages, evaluate, read_examples

    examples = read_examples(directory)[:limit]
    outcomes = []
    with load(model) as actor:

        def ground(picture: Image, instruction: str) -> Grounding:
            return actor.ground(picture, instruction, max_pixels=max_pixels)

        for outcome in evaluate(examples, ground, most=k, area=area):
            outcomes.append(outcome)
            if len(outcomes) % 10 == 0:
                hits = sum(one.scores["hit@1"] for one in outcomes)
                typer.secho(f"{len(outcomes)}/{len(examples)}  hit@1 {hits / len(outcomes):.3f}", dim=True, err=True)
    table = averages(outcomes)
    if as_json:
        typer.echo(json.dumps({"examples": len(outcomes), "k": k, "scores": table}, indent=2))
        return
    width = max(map(len, table))
    typer.echo("  ".join([" " * width, *(f"{metric.replace('k', str(k)):>9}" for metric in METRICS)]))
    for name, row in table.items():
        typer.echo("  ".join([f"{name:{width}}", *(f"{row[metric]:9.1%}" for metric in METRICS)]))
