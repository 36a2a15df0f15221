"""The loop on a recorded screen, with real grounding and a real planner model behind the server."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

import pytest

import lib_mlx
from lib_mlx.agent import Action, Agent, ChatPlanner, Clicks, Kind, Place, Recorder, Step, write_report
from lib_mlx.agent.endpoint import ChatModel
from lib_mlx.errors import InvalidArgument, NotFound, TargetNotFound
from tests.checkpoints import SCRIPTS, build
from tests.checkpoints.scripts import Script
from tests.grounding.conftest import TRAINED, cases, picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from PIL import Image

    Find = Callable[[Image.Image, str], Place]

PLANS = {
    "hello": SCRIPTS["hello"],
    "after": SCRIPTS["after"],
    "Press": Script(
        "Press", ('{"thought": "<b>first</b>"', ', "action": "click"', ', "target": "Press the blue button"', "}")
    ),
    "Done.": Script("Done.", ('{"action": "finished"', "}")),
    "Babble": Script("Babble", ('{"action": ', '"fly"}')),
    "Failed:": Script("Failed:", ('{"action": "call_user",', ' "value": "I cannot"}')),
}


@pytest.fixture
def screen() -> Recorder:
    """A settings window with five buttons."""
    return Recorder(picture(cases(TRAINED)["settings"]))


@pytest.fixture(scope="module")
def planner_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a crafted model that plans."""
    path = build(tmp_path_factory.mktemp("planner") / "planner", "qwen", PLANS)
    with lib_mlx.load_model(path, thinking_enabled=False) as model, model.start_server() as server:
        yield f"{server.base_url}/v1"


def on_target(place: Place) -> bool:
    case = cases(TRAINED)["settings"]
    x, y = place.pixel(*case["original_wh"])
    left, top, right, bottom = case["target_box"]
    return bool(left <= x <= right and top <= y <= bottom)


def test_a_plan_of_clicks(screen: Recorder, ground: Find) -> None:
    """Each instruction is grounded and clicked on, and that is all."""
    run = Agent(screen, ground).run(Clicks(["Press the blue button"]))
    assert (run.ending, [str(step) for step in run.steps]) == ("finished", ["Done.", "Done."])
    ((action, (place,)),) = screen.done
    assert action.kind is Kind.CLICK
    assert on_target(place)


def test_a_model_plans(screen: Recorder, ground: Find, planner_url: str, tmp_path: Path) -> None:
    """It says an action, is told what came of it, and says that it is done; the report shows all of that, escaped."""
    task = "Press the blue button, <script>alert(1)</script>"
    told: list[Step] = []
    # Where the form forces the next bytes, llguidance allows one way to tokenise them, which is not a script's way.
    planner = ChatPlanner(ChatModel(planner_url), task, sees=False, structured=False)
    run = Agent(screen, ground, tell=told.append).run(planner)
    assert run.ending == "finished"
    assert [step.action and step.action.kind for step in told] == [Kind.CLICK, Kind.FINISHED]
    assert on_target(screen.done[0][1][0])
    page = write_report(tmp_path / "report.html", task, run).read_text()
    assert html.escape(task) in page
    assert "<script" not in page
    assert "<b>" not in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_form(screen: Recorder, ground: Find, planner_url: str) -> None:
    """A server that can holds the model to an action's form."""
    run = Agent(screen, ground).run(ChatPlanner(ChatModel(planner_url), "Done.", sees=False))
    assert (run.ending, len(run.steps)) == ("finished", 1)


def test_a_model_that_says_nonsense(screen: Recorder, ground: Find, planner_url: str) -> None:
    """It is told so and asked again."""
    planner = ChatPlanner(ChatModel(planner_url), "Babble", sees=False, structured=False)
    run = Agent(screen, ground).run(planner)
    assert (run.ending, run.answer, screen.done) == ("needs_user", "I cannot", [])
    assert "'fly'" in str(run.steps[0])


def test_a_planner_that_cannot_be_asked(screen: Recorder, ground: Find, planner_url: str) -> None:
    """That ends the run with its error."""
    agent = Agent(screen, ground)
    with pytest.raises(NotFound, match="does not answer"):
        agent.run(ChatPlanner(ChatModel("http://127.0.0.1:9/v1"), "Press"))
    assert agent.latest.ending == "interrupted"
    with pytest.raises(lib_mlx.LibMlxError, match="nobody"):
        Agent(screen, ground).run(ChatPlanner(ChatModel(planner_url, "nobody"), "Press", sees=False))
    with pytest.raises(InvalidArgument, match="no URL"):
        ChatModel("localhost:80")


def test_a_dry_run(screen: Recorder, ground: Find) -> None:
    """Everything is found and nothing done."""
    run = Agent(screen, ground, dry_run=True).run(Clicks(["Press the blue button"]))
    assert screen.done == []
    assert run.steps[0].outcome == "dry_run"
    assert on_target(run.steps[0].places[0])


def test_actions_that_are_not_allowed(screen: Recorder, ground: Find) -> None:
    """The hook sees the action and its place, and what it refuses is not done."""
    asked: list[Step] = []
    run = Agent(screen, ground, confirm=lambda step: bool(asked.append(step))).run(Clicks(["Press the blue button"]))
    assert (screen.done, run.ending, run.answer) == ([], "needs_user", "The user did not allow this action.")
    assert on_target(asked[0].places[0])


def test_a_target_that_is_not_there(screen: Recorder) -> None:
    """The planner is told; without one the user is."""

    def nowhere(_picture: Image.Image, _target: str) -> Place:
        raise TargetNotFound("Nothing is there.")

    run = Agent(screen, nowhere).run(Clicks(["Press it", "Press that"]))
    assert (run.ending, len(run.steps), screen.done) == ("needs_user", 2, [])
    assert "Nothing is there" in run.answer


class Always:
    """Plans one action, again and again."""

    def __init__(self, action: Action) -> None:
        self.action = action

    def plan(self, picture: Image.Image, steps: Sequence[Step]) -> Action:  # noqa: ARG002
        return self.action


def test_the_limit(screen: Recorder, ground: Find) -> None:
    """After so many steps it ends, with what was done."""
    run = Agent(screen, ground, step_limit=3).run(Always(Action(Kind.ENTER)))
    assert (run.ending, len(run.steps), len(screen.done)) == ("step_limit", 3, 3)
    with pytest.raises(InvalidArgument, match="step_limit"):
        Agent(screen, ground, step_limit=0)


def test_waiting_and_answering(screen: Recorder, ground: Find) -> None:
    """Neither touches the screen; the answer is the run's."""
    run = Agent(screen, ground, step_limit=1).run(Always(Action(Kind.WAIT, value="0.01")))
    assert run.steps[0].seconds >= 0.01
    run = Agent(screen, ground).run(Always(Action(Kind.ANSWER, value="42")))
    assert (run.ending, run.answer, screen.done) == ("answered", "42", [])


def test_a_report_that_cannot_be_written(screen: Recorder, ground: Find, tmp_path: Path) -> None:
    """Nothing is left of it, and what was there stays."""
    run = Agent(screen, ground, dry_run=True).run(Clicks(["Press the blue button"]))
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write_report(tmp_path / "report.html", "task", run)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
