"""Progress on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeAlias

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID

    Report: TypeAlias = Callable[[str, int, int], None]
    """Told a stage, bytes done and bytes in all."""


@contextmanager
def loading_bar() -> Iterator[Callable[[str, float], None]]:
    """Give what is told a load's stage and progress, from 0 to 1; it shows nothing but on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _stage, _progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = TextColumn("{task.description:9}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("loading", total=1.0)
        yield lambda stage, progress: shown.update(task, description=stage or "loading", completed=progress)


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
