"""Who says what to do next: a chat model, or a list of things to click on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lib_mlx.agent.actions import MEANINGS, SCHEMA, Action, Kind, read_action
from lib_mlx.agent.endpoint import data_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from lib_mlx.agent.endpoint import ChatModel
    from lib_mlx.agent.loop import Step

_SYSTEM = """\
You work with a computer's screen for a user. In each turn say the one next action, as a JSON object:
{"thought": "why", "action": "click", "target": "the blue Save button", "value": ""}
The actions are:
%s
Describe a target so that someone who only sees the screen finds it. After each action you are told what came of it.
When the task is done, say {"action": "finished"}; if you cannot go on, say {"action": "call_user", "value": "why"}."""
SYSTEM = _SYSTEM % "\n".join(f"- {kind}: {meaning}" for kind, meaning in MEANINGS.items())
_MOST_TOKENS = 500


class Clicks:
    """Plans one click for each instruction, in order, and gives up at the first that fails.

    Args:
        instructions: what to click on.
    """

    def __init__(self, instructions: Sequence[str]) -> None:
        self._instructions = list(instructions)

    def plan(self, picture: Image, steps: Sequence[Step]) -> Action:  # noqa: ARG002 - a planner's signature
        """Return the next click, or that all are done."""
        if steps and steps[-1].outcome in {"failed", "declined"}:
            return Action(Kind.CALL_USER, value=str(steps[-1]))
        if len(steps) == len(self._instructions):
            return Action(Kind.FINISHED)
        return Action(Kind.CLICK, target=self._instructions[len(steps)])


class ChatPlanner:
    """Has a chat model plan.

    Args:
        model: what to ask.
        task: what the user wants.
        sees: whether the model understands pictures; else it goes by what it is told.
        structured: whether its server holds answers to a JSON schema, as lib_mlx does.
    """

    def __init__(self, model: ChatModel, task: str, *, sees: bool = True, structured: bool = True) -> None:
        self._model = model
        self._task = task
        self._sees = sees
        form = {"type": "json_schema", "json_schema": {"name": "action", "schema": SCHEMA}}
        self._options: dict[str, Any] = {"response_format": form} if structured else {}

    def plan(self, picture: Image, steps: Sequence[Step]) -> Action:
        """Ask for the next action; only the newest picture is shown."""
        said: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self._task}]
        for step in steps:
            said.append({"role": "assistant", "content": _repeated(step.action)})
            said.append({"role": "user", "content": str(step)})
        if self._sees:
            text = {"type": "text", "text": said[-1]["content"]}
            said[-1]["content"] = [text, {"type": "image_url", "image_url": {"url": data_url(picture)}}]
        choice = self._model.choice(said, temperature=0, max_tokens=_MOST_TOKENS, **self._options)
        return read_action(str((choice.get("message") or {}).get("content") or ""))


def _repeated(action: Action | None) -> str:
    """Return what a model said, in few words."""
    if action is None:
        return "{}"
    words = {"target": action.target, "end_target": action.end_target, "value": action.value}
    return json.dumps({"action": str(action.kind), **{key: value for key, value in words.items() if value}})
