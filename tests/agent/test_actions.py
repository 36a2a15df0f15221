"""What models say, read as actions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_mlx.agent import Action, Kind, read_action
from lib_mlx.agent.actions import MEANINGS, NotAnAction


@pytest.mark.parametrize(
    ("said", "action"),
    [
        ('{"action": "click", "target": "the button"}', Action(Kind.CLICK, "the button")),
        ("{'action': 'CLICK', 'value': None, 'position': [0.5, 0.25]}", Action(Kind.CLICK, positions=((0.5, 0.25),))),
        (
            '```json\n{"thought": "it is empty", "action": "input", "target": "name", "value": "Ada"}\n```',
            Action(Kind.INPUT, "name", value="Ada", thought="it is empty"),
        ),
        (
            "Thought: select it.\nAction: {'action': 'SELECT_TEXT', 'position': [[0, 0], [1, 1]]}",
            Action(Kind.SELECT_TEXT, positions=((0.0, 0.0), (1.0, 1.0))),
        ),
        ('{"action": "wait", "value": 0.5}', Action(Kind.WAIT, value="0.5")),
        ('{"action": "finished"}', Action(Kind.FINISHED)),
    ],
)
def test_what_is_understood(said: str, action: Action) -> None:
    """JSON and Python's dicts, in whatever they are wrapped, with words or positions for targets."""
    assert read_action(said) == action


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("I would click on it.", "no JSON object"),
        ("[1]", "no JSON object"),
        ('{"action": "fly"}', "'fly'"),
        ('{"action": "click"}', "what to click"),
        ('{"action": "select_text", "target": "a"}', "what to select_text"),
        ('{"action": "click", "position": [400, 300]}', "outside the screen"),
        ('{"action": "click", "position": "left"}', "position that is none"),
        ('{"action": "click", "position": [[0, 0], [1, 1]]}', "wrong number"),
        ('{"action": "scroll", "value": "sideways"}', "'sideways'"),
        ('{"action": "input", "target": "name"}', "no value"),
        ('{"action": "wait", "value": "nan"}', "'nan'"),
        ('{"action": "click", "target": ["a"]}', "no text as target"),
        ('{"action": "click", "target": "a", "button": "right"}', "'button'"),
    ],
)
def test_what_is_not(said: str, why: str) -> None:
    """It is refused by name, so that a planner can be told."""
    with pytest.raises(NotAnAction, match=why):
        read_action(said)


@given(st.text())
def test_any_text(said: str) -> None:
    """Nothing that a model says is anything but an action or refused."""
    try:
        read_action(said)
    except NotAnAction:
        return


def test_every_action_is_explained() -> None:
    """The list that planners are shown is complete."""
    assert set(MEANINGS) == set(Kind)
