"""How a checkpoint marks reasoning and tool calls, as mlx-lm infers it from the tokenizer and the template."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from lib_mlx.engine.output_parser import ANSWER, REASONING, TOOL, OutputFormat

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


def output_format(wrapper: TokenizerWrapper) -> OutputFormat:
    """Return the markers of `wrapper`'s checkpoint."""
    edges: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for state, own in wrapper.response_transitions.items():
        edges[state] += [(marker, target) for marker, target in own if target is not None]
    if wrapper.has_thinking:
        edges[ANSWER].append((wrapper.think_start, REASONING))
        edges[REASONING].append((wrapper.think_end, ANSWER))
    if wrapper.has_tool_calling:
        if all(target != TOOL for own in edges.values() for _, target in own):
            edges[ANSWER].append((wrapper.tool_call_start, TOOL))
        if wrapper.has_thinking:  # a model may start a call without closing its reasoning
            edges[REASONING].append((wrapper.tool_call_start, TOOL))
        if wrapper.tool_call_end:
            edges[TOOL].append((wrapper.tool_call_end, ANSWER))
        edges.setdefault(TOOL, [])  # without an end marker a call goes on to the end of the text
    edges[ANSWER] += [(marker, ANSWER) for marker in wrapper.structural_markers]
    return OutputFormat(
        transitions={state: tuple(dict.fromkeys(own)) for state, own in edges.items()},
        tool_start=wrapper.tool_call_start or "",
        tool_end=wrapper.tool_call_end or "",
        parse_tool_call=wrapper.tool_parser,
    )
