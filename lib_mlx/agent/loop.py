"""The loop: look, plan, ground, ask, act; and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from lib_mlx.agent.actions import ENDS, Action, Kind, NotAnAction
from lib_mlx.agent.screen import Place
from lib_mlx.errors import InvalidArgument, LibMlxError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from lib_mlx.agent.screen import Screen

Grounder = Callable[["Image", str], Place]
"""Finds what words mean on a picture; raises `TargetNotFound` or another `LibMlxError` if it does not."""
Ending = Literal["finished", "answered", "needs_user", "step_limit", "interrupted"]
_ENDINGS: dict[Kind, Ending] = {
    Kind.FINISHED: "finished",
    Kind.ANSWER: "answered",
    Kind.CALL_USER: "needs_user",
}


@dataclass
class Step:
    """One turn of the loop."""

    number: int
    picture: Image
    """What the screen showed before it."""
    action: Action | None = None
    """None if none could be planned."""
    places: tuple[Place, ...] = ()
    outcome: Literal["done", "dry_run", "declined", "failed"] = "done"
    error: LibMlxError | None = None
    """Why it failed."""
    seconds: float = 0.0

    def __str__(self) -> str:
        """Say what came of it, for a planner or a person."""
        match self.outcome:
            case "done":
                return "Done."
            case "dry_run":
                return "Done, as far as a dry run goes: nothing was changed."
            case "declined":
                return "The user did not allow this action."
            case "failed":
                return f"Failed: {self.error}"


@dataclass
class Run:
    """What an agent did."""

    ending: Ending
    steps: list[Step] = field(default_factory=list)
    answer: str = ""
    """The answer, or what the user is asked."""


class Planner(Protocol):
    """Says what to do next."""

    def plan(self, picture: Image, steps: Sequence[Step]) -> Action:
        """Return the next action.

        Args:
            picture: what the screen shows.
            steps: what was done so far.

        Raises:
            NotAnAction: the model did not say one; it is told so, and asked again in the next step.
        """


class Agent:
    """Works with a screen.

    Args:
        screen: to look at and act on.
        ground: finds targets on it.
        confirm: asked before each action that does something; False keeps it from being done.
        dry_run: do nothing but look.
        step_limit: the most turns.
        tell: called after each.
    """

    def __init__(
        self,
        screen: Screen,
        ground: Grounder,
        *,
        confirm: Callable[[Step], bool] = lambda _step: True,
        dry_run: bool = False,
        step_limit: int = 20,
        tell: Callable[[Step], None] = lambda _step: None,
    ) -> None:
        if step_limit < 1:
            raise InvalidArgument(f"step_limit is {step_limit}; it must be at least 1.", param="step_limit")
        self._screen = screen
        self._ground = ground
        self._confirm = confirm
        self._dry_run = dry_run
        self._step_limit = step_limit
        self._tell = tell
        self.latest = Run("interrupted")
        """The run under way, or the last one: what there is of a run that was ended by an error."""

    def run(self, planner: Planner) -> Run:
        """Work until the planner says that it is done, needs the user, or the steps are used up.

        What goes wrong with one step is told to the planner, which may find another way.

        Raises:
            LibMlxError: the planner's model cannot be asked.
        """
        run = self.latest = Run("interrupted")
        for number in range(1, self._step_limit + 1):
            begun = time.monotonic()
            step = Step(number, self._screen.look())
            self._take(step, planner, run.steps)
            step.seconds = time.monotonic() - begun
            run.steps.append(step)
            self._tell(step)
            if step.action is not None and step.action.kind in ENDS:
                run.ending, run.answer = _ENDINGS[step.action.kind], step.action.value
                return run
        run.ending = "step_limit"
        return run

    def _take(self, step: Step, planner: Planner, before: Sequence[Step]) -> None:
        try:
            step.action = planner.plan(step.picture, before)
        except NotAnAction as error:
            step.outcome, step.error = "failed", error
            return
        try:
            places = [Place(x, y) for x, y in step.action.positions]
            places += [self._ground(step.picture, target) for target in step.action.targets]
            step.places = tuple(places)
            self._act(step, step.action)
        except LibMlxError as error:
            step.outcome, step.error = "failed", error

    def _act(self, step: Step, action: Action) -> None:
        if action.kind in ENDS:
            return
        if self._dry_run:
            step.outcome = "dry_run"
        elif not self._confirm(step):
            step.outcome = "declined"
        elif action.kind is Kind.WAIT:
            time.sleep(action.seconds)
        else:
            self._screen.act(action, step.places)
