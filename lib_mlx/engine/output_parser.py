"""Splits the model's text into reasoning, answer and tool calls, incrementally.

One parser serves streaming and not, so the two cannot disagree; any chunking of a text gives the same events
when neighbouring deltas are joined. Markers come from the checkpoint's tokenizer through mlx-lm.
"""

from __future__ import annotations

import enum
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lib_mlx.engine.stop_matcher import StopMatcher
from lib_mlx.generation import Delta, ReasoningDelta, TextDelta, ToolCall, ToolCallDelta
from lib_mlx.models.upstream import TextStateMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ANSWER, REASONING, TOOL = "normal", "reasoning", "tool"  # mlx-lm's names


class Opening(enum.Enum):
    """Where the model's text begins, as its prompt left it."""

    PLAIN = enum.auto()
    IN_REASONING = enum.auto()
    AFTER_REASONING = enum.auto()


@dataclass(frozen=True)
class OutputFormat:
    """How one checkpoint marks reasoning and tool calls in its text."""

    transitions: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """State -> (marker, next state)."""
    tool_start: str = ""
    tool_end: str = ""
    parse_tool_call: Callable[[str, Any], Any] | None = None
    """mlx-lm's parser of the text between the markers; returns a call or a list, or raises."""

    def without_tools(self) -> OutputFormat:
        """Return the format of a request that offers no tools: tool markers are plain text."""
        kept = {
            state: tuple(edge for edge in edges if edge[1] != TOOL)
            for state, edges in self.transitions.items()
            if state != TOOL
        }
        return OutputFormat(transitions=kept)


class OutputParser:
    """The parse of one answer. Feed it text, then call `finish` once. Not thread-safe; one per request."""

    def __init__(
        self,
        output_format: OutputFormat,
        *,
        stop: tuple[str, ...] = (),
        tools: list[dict[str, Any]] | None = None,
        opening: Opening = Opening.PLAIN,
        allowed_tools: frozenset[str] | None = None,
    ) -> None:
        edges = {state: list(own) for state, own in output_format.transitions.items()}
        self._machine = TextStateMachine(edges or None)
        self._state = self._machine.make_state(REASONING if opening is Opening.IN_REASONING else ANSWER)
        self._format = output_format
        self._tools = tools
        self._allowed = allowed_tools
        self._stop = StopMatcher(stop)
        self._raw_call: list[str] = []  # the text of the tool call being read
        self._before_call = ("", ANSWER)  # the white space and the state it began after
        # A call inside reasoning may turn out to be none, and then the reasoning goes on: one character at a time,
        # because what follows the call must not have been read as an answer yet.
        calls_in_reasoning = any(target == TOOL for _, target in edges.get(REASONING, ()))
        self._marker_starts = frozenset(marker[0] for own in edges.values() for marker, _ in own if calls_in_reasoning)
        self._space = ""  # white space that is shown only if text follows it
        self._begun = False  # whether the block being read has shown text
        self._after_marker = opening is not Opening.PLAIN  # the white space around markers is layout, not content
        self.calls: list[ToolCall] = []
        """The tool calls so far, in order."""

    @property
    def state(self) -> str:
        """Where the text stands: `ANSWER`, `REASONING` or `TOOL`."""
        return str(self._state[0])

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence has ended the answer."""
        return self._stop.matched is not None

    @property
    def stop(self) -> str | None:
        """The stop sequence that ended the answer, if one has."""
        return self._stop.matched

    def feed(self, text: str) -> list[Delta]:
        """Return the events that became certain with `text`."""
        events: list[Delta] = []
        if self.stopped:
            return events
        for part in text if self._is_delicate(text) else [text]:
            self._state, segments = TextStateMachine.split(self._state, part)
            for index, (state, piece) in enumerate(segments):
                self._take(state, piece, events)
                if index + 1 < len(segments):
                    self._cross(state, segments[index + 1][0], events)
        return _joined(events)

    def _is_delicate(self, text: str) -> bool:
        """Whether a marker may begin or end in `text`, in a format where calls may begin inside reasoning."""
        held = self._state[3]
        return bool(self._marker_starts) and (bool(held) or not self._marker_starts.isdisjoint(text))

    def finish(self) -> list[Delta]:
        """Return the events held back: the text is over, whatever state it is in."""
        events: list[Delta] = []
        self._state, rest, state = TextStateMachine.flush(self._state)
        self._take(state, rest, events)
        if state == TOOL:
            self._end_call("", events)
        elif state == ANSWER and not self._after_marker:
            self._show(self._space, events)
        self._emit(self._stop.flush(), events)
        return events

    def _take(self, state: str, piece: str, events: list[Delta]) -> None:
        """Text of `state` was read."""
        if not piece or self.stopped:
            return
        if state == TOOL:
            self._raw_call.append(piece)
            return
        text = self._space + piece
        body = text.strip() if state == REASONING else text.lstrip()
        if not self._begun and not body:
            self._space = text
            return
        if not self._begun and self._after_marker:
            text = text.lstrip()
        self._begun, self._space = True, ""
        if state == ANSWER:
            self._show(text, events)
            return
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            events.append(ReasoningDelta(shown))

    def _cross(self, state: str, target: str, events: list[Delta]) -> None:
        """A marker was read: `state` ends, `target` begins."""
        if self.stopped or state == target == ANSWER:
            return
        if target == TOOL:
            self._before_call = (self._space, state)
        self._begun, self._space, self._after_marker = False, "", True
        if state == TOOL:
            self._end_call(self._format.tool_end, events)
        elif state == ANSWER:
            self._emit(self._stop.flush(), events)

    def _end_call(self, end: str, events: list[Delta]) -> None:
        raw, self._raw_call = "".join(self._raw_call), []
        calls = self._parse(raw)
        if calls is None:  # never lost: what does not parse is text
            self._begun = True
            text = f"{self._format.tool_start}{raw}{end}"
            space, before = self._before_call
            if before == REASONING:
                events.append(ReasoningDelta(space + text))
                self._state = self._machine.make_state(REASONING)
            else:
                self._show(text, events)
            return
        for call in calls:
            events.append(ToolCallDelta(len(self.calls), call.id, call.name, call.arguments))
            self.calls.append(call)

    def _parse(self, raw: str) -> list[ToolCall] | None:
        parse = self._format.parse_tool_call
        if parse is None:
            return None
        try:
            parsed = parse(raw, self._tools)
            found = parsed if isinstance(parsed, list) else [parsed]
            calls = [_tool_call(call) for call in found]
        except Exception:  # noqa: BLE001 - mlx-lm's parsers raise whatever the text makes them raise
            return None
        forbidden = self._allowed is not None and any(call.name not in self._allowed for call in calls)
        return None if forbidden else calls or None

    def _show(self, text: str, events: list[Delta]) -> None:
        self._emit(self._stop.feed(text), events)

    @staticmethod
    def _emit(text: str, events: list[Delta]) -> None:
        if text:
            events.append(TextDelta(text))


def _joined(events: list[Delta]) -> list[Delta]:
    """Join neighbouring pieces of text of one kind."""
    joined: list[Delta] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            joined[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            joined[-1] = ReasoningDelta(last.text + event.text)
        else:
            joined.append(event)
    return joined


def _tool_call(parsed: Mapping[str, Any]) -> ToolCall:
    name, arguments = parsed["name"], parsed.get("arguments", {})
    if not isinstance(name, str) or not name:
        raise ValueError("a tool call needs a name")
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise TypeError("the arguments of a tool call are an object")
    name.encode()  # a lone surrogate, which models write as an escape, cannot be sent as UTF-8
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        text = json.dumps(arguments, allow_nan=False)
    return ToolCall(f"call_{secrets.token_hex(12)}", name, text)
