"""`lib-mlx train`: fine-tune a model."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lib_mlx.cli.interrupt import stopped_by_ctrl_c
from lib_mlx.cli.run import ModelName  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.training.trainer import Progress

_LINES = 20  # told without a terminal


def train(
    model: ModelName,
    data: Annotated[Path, typer.Option(help="A .jsonl file, or a folder with train.jsonl and valid.jsonl.")],
    output: Annotated[Path, typer.Option(help="A folder for the adapter; what is there is gone on with.")],
    *,
    method: Annotated[str, typer.Option(help="lora, dora or full.")] = "lora",
    steps: Annotated[int | None, typer.Option(help="Updates of the weights; 600.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples at once; 4.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Batches of an update; 1.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="2e-4.")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, linear or cosine.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps in which the learning rate rises; 0.")] = None,
    layers: Annotated[int | None, typer.Option(help="How many of the last ones are trained; all.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of the adapter; 8.")] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Smaller images are enlarged to it.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Larger images are made smaller; saves time.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longer examples are cut; 2048.")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Steps between validations; 100.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; 100.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many validations without a better one.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random; 0.")] = None,
    train_on_prompts: Annotated[bool, typer.Option("--train-on-prompts", help="Learn the questions, too.")] = False,
    checkpoint_layers: Annotated[bool, typer.Option("--checkpoint-layers", help="Slower, with less memory.")] = False,
) -> None:
    """Fine-tune a model: an adapter, a checkpoint, and the loss as CSV and picture. Ctrl-C saves.

    Of a vision model the language part learns, from examples with and without images.
    """
    told = {key: value for key, value in locals().items() if value is not None and value is not False}  # 0 is told
    paths = {
        "model_path": told.pop("model"),
        "data_path": str(told.pop("data")),
        "output_path": str(told.pop("output")),
    }
    from lib_mlx.config import parse_config
    from lib_mlx.training.config import TrainConfig
    from lib_mlx.training.trainer import train as run

    config = parse_config(TrainConfig, {**paths, **told})
    stopped = stopped_by_ctrl_c()
    show = _Bar() if sys.stderr.isatty() else _lines(config.steps)
    try:
        result = run(config, show, stopped.is_set)
    finally:
        if isinstance(show, _Bar):
            show.close()
    for line in result.cut:
        typer.echo(line, err=True)
    best = "" if result.best_validation_loss is None else f", best validation {result.best_validation_loss:.3f}"
    steps_done = "1 step" if result.step == 1 else f"{result.step} steps"
    typer.echo(f"{result.ended} after {steps_done}: loss {result.loss:.3f}{best}", err=True)
    typer.echo(result.path)
    if result.ended == "interrupted":
        typer.echo("The same command goes on.", err=True)
        raise typer.Exit(130)


def _figures(progress: Progress) -> str:
    validation = "" if progress.validation_loss is None else f"  validation {progress.validation_loss:.3f}"
    return (
        f"loss {progress.loss:.3f}{validation}  {progress.tokens_per_second:.0f} tokens/s"
        f"  {progress.memory_bytes / 1e6:.0f} MB"
    )


def _lines(steps: int) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        if progress.step == steps or progress.step % max(1, steps // _LINES) == 0:
            typer.echo(f"step {progress.step} of {steps}  {_figures(progress)}  {progress.eta_s:.0f} s left", err=True)

    return tell


class _Bar:
    """A bar with the figures of the last step."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Shown

        columns: Any = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._shown = Shown(*columns, console=Console(stderr=True))
        self._task = self._shown.add_task("loading", total=None)
        self._shown.start()

    def __call__(self, progress: Progress) -> None:
        self._shown.update(self._task, completed=progress.step, total=progress.steps, description=_figures(progress))

    def close(self) -> None:
        self._shown.stop()
