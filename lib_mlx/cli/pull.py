"""`lib-mlx pull`: fetch a model."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import TaskID

    Report: TypeAlias = Callable[[str, int, int], None]


def pull(
    name: Annotated[str, typer.Argument(help="A short name (smollm2) or a Hugging Face repository (owner/name).")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the model's path.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")] = None,
) -> None:
    """Fetch a model and print its directory as the last line of stdout.

    What is there already is not fetched again; an interrupted download goes on where it stopped.
    """
    from lib_mlx.models import download

    with reporter(quiet) as report:
        path = download.pull(name, report, revision)
    typer.echo(path)


def reporter(quiet: bool) -> AbstractContextManager[Report | None]:
    """Give a progress bar on a terminal, and lines elsewhere; both on stderr."""
    if quiet:
        return nullcontext()
    return _Bar() if sys.stderr.isatty() else nullcontext(_Lines())


class _Lines:
    """A line at the start of each stage, and one at each tenth of it."""

    def __init__(self) -> None:
        self._last = ("", -1)

    def __call__(self, stage: str, done: int, total: int) -> None:
        tenth = done * 10 // total if total else 0
        if (stage, tenth) == self._last:
            return
        self._last = (stage, tenth)
        amount = f" {tenth * 10:3d} % of {total / 1e6:.1f} MB" if total else ""
        typer.echo(f"{stage}{amount}", err=True)


class _Bar(AbstractContextManager["Report"]):
    """A progress bar for each stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Report:
        self._progress.start()
        return self._report

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _report(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)
