"""`lib-mlx agent`: work with a browser's page, or the desktop."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

    from lib_mlx.agent import Screen, Step
    from lib_mlx.agent.loop import Grounder

Key = Annotated[str | None, typer.Option("--api-key", help="What the servers ask for.")]


def agent(
    task: Annotated[
        list[str], typer.Argument(help="With --planner one task; without, things to click on, one after the other.")
    ],
    *,
    url: Annotated[str | None, typer.Option("--url", help="Work with this page, in a browser of its own.")] = None,
    desktop: Annotated[bool, typer.Option("--desktop", help="Work with this machine's desktop.")] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Find targets with this GUI-Actor.")] = None,
    grounder: Annotated[
        str | None, typer.Option("--grounder", help="Find targets with the model of this server: http://HOST:PORT/v1.")
    ] = None,
    planner: Annotated[
        str | None, typer.Option("--planner", help="Plan with the chat model of this server: http://HOST:PORT/v1.")
    ] = None,
    planner_model: Annotated[str | None, typer.Option(help="Its model; the server's own if left out.")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="The planner's model understands no pictures.")] = False,
    loose: Annotated[
        bool, typer.Option("--loose", help="The planner's server cannot hold answers to a JSON schema.")
    ] = False,
    api_key: Key = None,
    steps: Annotated[int, typer.Option(min=1, help="The most actions.")] = 20,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look and find, but do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before each action.")] = False,
    size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Of the browser's page, in pixels.")] = "1280x800",
    show: Annotated[bool, typer.Option("--show", help="Show the browser's window.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write an HTML file with every step and its screenshot.")] = None,
) -> None:
    """Carry out a task on a screen, asking before each action. Exit code 1: it was not finished."""
    from lib_mlx.agent import Agent, ChatPlanner, Clicks, write_report
    from lib_mlx.agent.endpoint import ChatModel

    if (url is None) == (not desktop):
        raise typer.BadParameter("Give either --url or --desktop.")
    if (model is None) == (grounder is None):
        raise typer.BadParameter("Give either --model or --grounder, to find targets with.")
    if not re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", size):
        raise typer.BadParameter(f"{size!r} is no size; give WIDTHxHEIGHT.")
    if planner is not None and len(task) != 1:
        raise typer.BadParameter("With --planner there is one task.")
    chat = None if planner is None else ChatModel(planner, planner_model, api_key)
    plan = ChatPlanner(chat, task[0], sees=not blind, structured=not loose) if chat else Clicks(task)
    with _grounder(model, grounder, api_key) as ground, _screen(url, size, show=show) as screen:
        confirm = (lambda _: True) if yes else _confirmed
        worker = Agent(screen, ground, confirm=confirm, dry_run=dry_run, step_limit=steps, tell=_tell)
        try:
            run = worker.run(plan)
        finally:  # also of what was interrupted
            if report is not None:
                typer.echo(f"The report is {write_report(report, '; '.join(task), worker.latest)}", err=True)
    typer.echo(run.answer or run.ending.replace("_", " "))
    if run.ending not in {"finished", "answered"}:
        raise typer.Exit(1)


@contextlib.contextmanager
def _grounder(model: str | None, url: str | None, api_key: str | None) -> Iterator[Grounder]:
    from lib_mlx.agent import ChatGrounder, Place
    from lib_mlx.agent.endpoint import ChatModel

    if model is None:
        yield ChatGrounder(ChatModel(str(url), api_key=api_key))
        return
    from lib_mlx.cli.generate import load

    with load(model) as loaded:

        def find(picture: Image, target: str) -> Place:
            point = loaded.ground(picture, target).point
            return Place(point.x, point.y)

        yield find


@contextlib.contextmanager
def _screen(url: str | None, size: str, *, show: bool) -> Iterator[Screen]:
    from lib_mlx.agent import DesktopScreen, browser_page

    if url is None:
        yield DesktopScreen()
        return
    width, _, height = size.partition("x")
    with browser_page(url, headless=not show, width=int(width), height=int(height)) as screen:
        yield screen


def _confirmed(step: Step) -> bool:
    where = ", ".join(str(place.pixel(*step.picture.size)) for place in step.places)
    typer.echo(f"{step.number}. {step.action}{f' at {where}' if where else ''}? [y/N] ", err=True, nl=False)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _tell(step: Step) -> None:
    typer.echo(f"{step.number}. {step.action or 'no action'}: {step}", err=True)
