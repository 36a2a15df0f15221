"""What an agent can do, and how models say it. Pure."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lib_mlx.errors import InvalidArgument


class NotAnAction(InvalidArgument):
    """What a model says is no action that can be done."""


class Kind(StrEnum):
    """The actions, as models name them."""

    CLICK = "click"
    INPUT = "input"
    SELECT = "select"
    HOVER = "hover"
    ANSWER = "answer"
    ENTER = "enter"
    SCROLL = "scroll"
    SELECT_TEXT = "select_text"
    COPY = "copy"
    WAIT = "wait"
    CALL_USER = "call_user"
    FINISHED = "finished"


MEANINGS = {
    Kind.CLICK: "click on target",
    Kind.INPUT: "click on target and type value",
    Kind.SELECT: "choose value in the list at target; without value, click on target",
    Kind.HOVER: "move the pointer over target",
    Kind.ANSWER: "answer the user's question with value; ends the task",
    Kind.ENTER: "press the enter key",
    Kind.SCROLL: "scroll in the direction value: up, down, left or right",
    Kind.SELECT_TEXT: "select text from target to end_target",
    Kind.COPY: "put value on the clipboard; without value, what is selected",
    Kind.WAIT: "wait for value seconds (5 if it is left out) until something changes",
    Kind.CALL_USER: "ask the user for help, value says why; ends the task",
    Kind.FINISHED: "the task is done",
}
ENDS = frozenset({Kind.ANSWER, Kind.CALL_USER, Kind.FINISHED})
DIRECTIONS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
"""Across and down, in screens."""
LONGEST_WAIT_S = 60.0
_POINTING = frozenset({Kind.CLICK, Kind.INPUT, Kind.SELECT, Kind.HOVER, Kind.SELECT_TEXT})
_NEEDS_VALUE = frozenset({Kind.INPUT, Kind.ANSWER, Kind.SCROLL})
_KEYS = frozenset({"action", "target", "end_target", "value", "position", "thought"})

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "thought": {"type": "string"},
        "action": {"type": "string", "enum": [str(kind) for kind in Kind]},
        "target": {"type": "string"},
        "end_target": {"type": "string"},
        "value": {"type": "string"},
    },
    "required": ["action"],
    "additionalProperties": False,
}
"""Of what a planner says."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do."""

    kind: Kind
    target: str = ""
    """What to do it to, in words, for a grounder to find."""
    end_target: str = ""
    """Where a selection ends."""
    value: str = ""
    """See `MEANINGS`."""
    positions: tuple[tuple[float, float], ...] = ()
    """Where, if whoever planned it knows: 0..1 across and down; of a selection, both ends."""
    thought: str = ""
    """Why."""

    @property
    def targets(self) -> tuple[str, ...]:
        """What has to be found on the screen."""
        if self.kind not in _POINTING or self.positions:
            return ()
        return (self.target, self.end_target) if self.kind is Kind.SELECT_TEXT else (self.target,)

    @property
    def seconds(self) -> float:
        """How long to wait."""
        return min(float(self.value or 5), LONGEST_WAIT_S)

    def __str__(self) -> str:
        parts = [
            self.target,
            f"to {self.end_target}" if self.end_target else "",
            repr(self.value) if self.value else "",
        ]
        return " ".join([str(self.kind), *filter(None, parts)])


def read_action(said: str) -> Action:
    """Return the action that a model says: JSON or a Python dict, also in a code fence or behind other text.

    Raises:
        NotAnAction: it is none, or lacks what it needs.
    """
    values = _object(said)
    unknown = sorted(set(map(str, values)) - _KEYS)
    if unknown:
        raise _wrong(f"has {unknown[0]!r}, which means nothing", f"Use {', '.join(sorted(_KEYS))}.")
    try:
        kind = Kind(str(values.get("action", "")).strip().lower())
    except ValueError:
        raise _wrong(f"has no action that is known: {values.get('action')!r}", f"Use {', '.join(Kind)}.") from None
    action = Action(
        kind,
        target=_text(values, "target"),
        end_target=_text(values, "end_target"),
        value=_text(values, "value"),
        positions=_positions(values.get("position")),
        thought=_text(values, "thought"),
    )
    _check(action)
    return action


def _check(action: Action) -> None:
    """Refuse what cannot be done."""
    if not all(target.strip() for target in action.targets):
        raise _wrong(f"does not say what to {action.kind}", "Describe the target, both of them for select_text.")
    if action.positions and len(action.positions) != (2 if action.kind is Kind.SELECT_TEXT else 1):
        raise _wrong("has a wrong number of positions", "Give one; two for select_text.")
    if action.kind in _NEEDS_VALUE and not action.value:
        raise _wrong(f"has no value to {action.kind}", "Give a value.")
    if action.kind is Kind.SCROLL and action.value.lower() not in DIRECTIONS:
        raise _wrong(f"scrolls {action.value!r}", f"Use {', '.join(DIRECTIONS)}.")
    if action.kind is Kind.WAIT:
        try:
            sane = action.seconds >= 0  # not for "nan"
        except ValueError:
            sane = False
        if not sane:
            raise _wrong(f"waits for {action.value!r}", "Give seconds as a number.")


def _object(said: str) -> dict[str, Any]:
    start, end = said.find("{"), said.rfind("}")
    text = said[start : end + 1] if 0 <= start < end else ""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    raise _wrong("is no JSON object", 'Say {"action": …} and nothing else.')


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise _wrong(f"has no text as {key}", "Give a string.")
    return str(value)


def _positions(value: Any) -> tuple[tuple[float, float], ...]:
    """Read [x, y] or [[x, y], [x, y]], 0..1."""
    if value is None:
        return ()
    pairs = value if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple) else [value]
    try:
        read = tuple((float(x), float(y)) for x, y in pairs)
    except (TypeError, ValueError):
        raise _wrong("has a position that is none", "Give [x, y], each from 0 to 1.") from None
    if not all(0 <= number <= 1 for pair in read for number in pair):
        raise _wrong("has a position outside the screen", "Give [x, y], each from 0 to 1.")
    return read


def _wrong(what: str, hint: str) -> NotAnAction:
    return NotAnAction(f"The action {what}.", hint=hint, param="action")
