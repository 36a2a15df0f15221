"""Reasoning, answer and tool calls out of one text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_mlx.engine.output_parser import Opening, OutputFormat, OutputParser
from lib_mlx.generation import Delta, ReasoningDelta, TextDelta, ToolCallDelta

HERMES = OutputFormat(
    transitions={
        "normal": (("<think>", "reasoning"), ("<tool_call>", "tool")),
        "reasoning": (("</think>", "normal"), ("<tool_call>", "tool")),
        "tool": (("</tool_call>", "normal"),),
    },
    tool_start="<tool_call>",
    tool_end="</tool_call>",
    parse_tool_call=lambda text, _tools: json.loads(text),
)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def parse(chunks: list[str], *, stop: tuple[str, ...] = (), **options: Any) -> list[tuple[str, str]]:
    """Return the events of `chunks`, neighbouring deltas of a kind joined."""
    parser = OutputParser(options.pop("output_format", HERMES), stop=stop, **options)
    events: list[Delta] = [event for chunk in chunks for event in parser.feed(chunk)] + parser.finish()
    joined: list[tuple[str, str]] = []
    for event in events:
        match event:
            case ToolCallDelta():
                joined.append(("call", f"{event.name}{event.arguments}"))
                continue
            case ReasoningDelta(text) | TextDelta(text):
                kind = "reasoning" if isinstance(event, ReasoningDelta) else "text"
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


PARIS = ("call", 'get_weather{"city": "Paris"}')
CASES = [
    ("plain", [("text", "plain")]),
    ("  spaces stay ", [("text", "  spaces stay ")]),
    ("\n", [("text", "\n")]),
    ("<think>\nhmm\n</think>\n\nSo.", [("reasoning", "hmm"), ("text", "So.")]),
    ("<think>\n\n</think>\n\nSo.", [("text", "So.")]),
    ("<think>cut", [("reasoning", "cut")]),
    ("<think>cut</thin", [("reasoning", "cut</thin")]),
    (CALL, [PARIS]),
    (f"{CALL}\n{CALL}\n", [PARIS, PARIS]),
    (f"<think>a</think>\nb {CALL}", [("reasoning", "a"), ("text", "b "), PARIS]),
    (f"<think>a {CALL} after", [("reasoning", "a"), PARIS, ("text", "after")]),
    (
        "<think>I could <tool_call> maybe </tool_call> or\n not.\n</think>\nFinal",
        [("reasoning", "I could <tool_call> maybe </tool_call> or\n not."), ("text", "Final")],
    ),
    ("<think>I could <tool_call> may", [("reasoning", "I could <tool_call> may")]),
    (CALL.removesuffix("</tool_call>"), [PARIS]),
    ("<tool_call>{nope</tool_call>\nSorry", [("text", "<tool_call>{nope</tool_call>\nSorry")]),
    ('<tool_call>{"name": 1}</tool_call>', [("text", '<tool_call>{"name": 1}</tool_call>')]),
    ('<tool_call>"x"</tool_call>', [("text", '<tool_call>"x"</tool_call>')]),
    ("<tool_call>{", [("text", "<tool_call>{")]),
    ("a < b <t", [("text", "a < b <t")]),
    ("one STOP two", [("text", "one ")]),
    ("<think>STOP is fine here</think>x STOP y", [("reasoning", "STOP is fine here"), ("text", "x ")]),
    (f"STOP {CALL}", []),
]


def test_a_call_that_is_not_allowed_is_text() -> None:
    """It is not made, and not lost."""
    assert parse([CALL], allowed_tools=frozenset({"get_weather"})) == [PARIS]
    assert parse([f"a {CALL} b"], allowed_tools=frozenset({"get_time"})) == [("text", f"a {CALL} b")]
    assert parse([CALL], allowed_tools=frozenset()) == [("text", CALL)]


@pytest.mark.parametrize(("text", "events"), CASES)
def test_parse(text: str, events: list[tuple[str, str]]) -> None:
    """Each text is split as its markers say; layout white space around markers is dropped."""
    assert parse([text], stop=("STOP",)) == events


@given(st.sampled_from([text for text, _ in CASES]), st.data())
def test_chunking_does_not_matter(text: str, data: st.DataObject) -> None:
    """However the text is cut into chunks, the events are the same."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(chunks, stop=("STOP",)) == parse([text], stop=("STOP",))


@given(st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "{", "a ", "\n", "ST", "OP"])))
def test_any_order_of_markers_is_survived(pieces: list[str]) -> None:
    """Markers in any order raise nothing and parse the same piece by piece and whole."""
    assert parse(pieces, stop=("STOP",)) == parse(["".join(pieces)], stop=("STOP",))


def test_arguments_that_cannot_be_sent_as_they_are() -> None:
    """A lone surrogate stays an escape; NaN is no JSON, so that call is text; so is one whose name is unsendable."""
    lone, nan, unnamed = (
        f'<tool_call>{{"name": "{name}", "arguments": {{"s": {value}}}}}</tool_call>'
        for name, value in (("f", '"\\ud83d é"'), ("f", "NaN"), ("\\ud83d", "1"))
    )
    ((kind, call),) = parse([lone])
    assert (kind, json.loads(call[1:])) == ("call", {"s": "\ud83d é"})
    assert call.isascii()
    assert parse([nan]) == [("text", nan)]
    assert parse([unnamed]) == [("text", unnamed)]


def test_a_held_stop_does_not_reach_over_reasoning() -> None:
    """What may begin a stop sequence is shown before the reasoning that follows; the stop is not completed after."""
    text = "abc ST<think>x</think>OP"
    assert parse([text], stop=("STOP",)) == [("text", "abc ST"), ("reasoning", "x"), ("text", "OP")]


def test_reasoning_opened_by_the_prompt() -> None:
    """Text that starts inside a reasoning block is reasoning until its end marker."""
    assert parse(["hm\n</think>\n\nSo."], opening=Opening.IN_REASONING) == [("reasoning", "hm"), ("text", "So.")]


def test_reasoning_closed_by_the_prompt() -> None:
    """White space after a block that the prompt closed is layout."""
    assert parse(["\n\nSo."], opening=Opening.AFTER_REASONING) == [("text", "So.")]


def test_tool_markers_are_text_when_no_tools_are_offered() -> None:
    """A request without tools gets what looks like a call as text."""
    assert parse([CALL], output_format=HERMES.without_tools()) == [("text", CALL)]


def test_a_parser_may_return_several_calls() -> None:
    """One block can hold several calls, numbered in order."""
    two = OutputFormat(HERMES.transitions, "<tool_call>", "</tool_call>", lambda _text, _tools: [{"name": "a"}] * 2)
    parser = OutputParser(two)
    events = parser.feed("<tool_call>x</tool_call>")
    assert [event.index for event in events if isinstance(event, ToolCallDelta)] == [0, 1]
    assert len({call.id for call in parser.calls}) == 2


def test_a_format_without_markers_is_all_text() -> None:
    """A checkpoint that marks nothing yields text alone."""
    assert parse(["<think>x</think>"], output_format=OutputFormat()) == [("text", "<think>x</think>")]
