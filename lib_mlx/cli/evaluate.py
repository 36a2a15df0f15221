"""`lib-mlx eval`: how well a model does, on published data or a text of your own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lib_mlx.cli.completion import model_names
from lib_mlx.cli.ground import Actor, MaxPixels  # noqa: TC001 - typer reads them
from lib_mlx.cli.service import Json  # noqa: TC001

if TYPE_CHECKING:
    from PIL.Image import Image

    from lib_mlx.grounding.result import Grounding

Text = Annotated[Path, typer.Option(help="A file of text in UTF-8.")]
Length = Annotated[int, typer.Option(min=2, help="Tokens that are seen at once.")]

app = typer.Typer(help="Measure models on data.", no_args_is_help=True)


@app.callback()
def _evaluate() -> None:
    """Measure models on data."""


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


@app.command("perplexity")
def perplexity(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", autocompletion=model_names)],
    *,
    text: Text,
    length: Length = 512,
    as_json: Json = False,
) -> None:
    """Print how well models predict a text: e to the mean loss of a token, the less the better."""
    from lib_mlx.evaluation import prediction

    content = prediction.read_text(text)
    found = {model: asdict(prediction.perplexity(model, content, length=length)) for model in models}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, models))
    typer.echo(f"{'':{width}}{'size, MB':>10}{'perplexity':>12}{'+-':>12}{'tokens':>9}")
    for model, row in found.items():
        told = f"{row['perplexity']:12.3f}{row['standard_error']:12.3f}{row['tokens']:9d}"
        typer.echo(f"{model:{width}}{_size(model):10.1f}{told}")


@app.command("kl")
def kl(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", autocompletion=model_names)],
    *,
    reference: Annotated[str, typer.Option(help="What they were made from.", autocompletion=model_names)],
    text: Text,
    length: Length = 512,
    as_json: Json = False,
) -> None:
    """Print how far models' predictions of a text are from a reference's: what quantising has cost."""
    from lib_mlx.evaluation import prediction

    content = prediction.read_text(text)
    divergences = prediction.divergences(models, reference, content, length=length)
    found = {model: asdict(one) for model, one in zip(models, divergences, strict=True)}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, [*models, reference]))
    typer.echo(f"{'':{width}}{'size, MB':>10}{'mean KL':>10}{'largest':>10}{'same first':>12}{'perplexity':>12}")
    for model, row in found.items():
        told = f"{row['mean_kl']:10.4f}{row['largest_kl']:10.3f}{row['same_first']:12.1%}{row['perplexity']:12.3f}"
        typer.echo(f"{model:{width}}{_size(model):10.1f}{told}")
    told = f"{0:10.4f}{0:10.3f}{1:12.1%}{next(iter(found.values()))['reference_perplexity']:12.3f}"
    typer.echo(f"{reference:{width}}{_size(reference):10.1f}{told}")


def _size(model: str) -> float:
    """Return the megabytes of a model's weights."""
    from lib_mlx.models import store

    return sum(file.stat().st_size for file in store.resolve(model).glob("*.safetensors")) / 1e6
