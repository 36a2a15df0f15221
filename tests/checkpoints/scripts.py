"""What the crafted models say."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, TypeAlias

from tests.checkpoints.families import (
    FAMILIES,
    HERMES_TOOL,
    THINK,
    Call,
    Family,
    call_body,
    marks_of,
    split_marks,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Piece: TypeAlias = str | bytes | Call
"""Text (one token), bytes (one token, may end inside a character), or a call (several tokens).

`<think>`, `</think>`, `<tool_call>` and `</tool_call>` stand for the family's own markers.
"""


@dataclasses.dataclass(frozen=True)
class Script:
    """What the model says after `<|go:name|>`, token by token, and whether it ends or begins again."""

    name: str
    pieces: tuple[Piece, ...]
    end: Literal["eos", "loop"] = "eos"

    def raw(self, family: str = "qwen", *, thinking: bool = True) -> bytes:
        """Return the bytes of one pass in `family`'s syntax, markers included, reasoning if `thinking`."""
        tokens = expand(self, FAMILIES[family], width=4)
        if not thinking:
            tokens = tokens[answer_start(tokens, FAMILIES[family]) :]
        return b"".join(token if isinstance(token, bytes) else token.encode() for token in tokens)

    def text(self, family: str = "qwen", *, thinking: bool = True) -> str:
        """Return `raw` as text; invalid UTF-8 becomes U+FFFD."""
        return self.raw(family, thinking=thinking).decode("utf-8", "replace")

    @property
    def reasoning(self) -> str:
        """The text between the reasoning markers, "" if there is none."""
        text = self.text()
        return text.partition("</think>")[0].removeprefix("<think>") if text.startswith("<think>") else ""

    @property
    def calls(self) -> tuple[Call, ...]:
        """The well-formed tool calls, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Call))


PARIS = Call("get_weather", {"city": "Paris"})
TOKYO_TIME = Call("get_time", {"zone": "Asia/Tokyo"})

_STANDARD = (
    Script("hello", ("Hello", ",", " I", " am", " a", " crafted", " model", ".")),
    Script("think", ("<think>", "\nLet", " me", " think", ".\n", "</think>", "\n\nThe", " answer", " is", " 42")),
    Script("tool", (PARIS,)),
    Script("tools", (PARIS, "\n", TOKYO_TIME)),
    Script("think_tool", ("<think>", "\nI need", " weather", "\n", "</think>", "\n\nLooking", " up. ", PARIS)),
    Script(
        "broken_tool",
        (
            "<tool_call>",
            '\n{"name": ',
            '"get_weather", ',
            '"arguments": ',
            '{"city": \n',
            "</tool_call>",
            "Sorry",
            "!",
        ),
    ),
    Script("unclosed_tool", ("Checking", ". ", "<tool_call>", '\n{"name"', ': "get_', "weather")),
    Script(
        "unicode",
        (
            b"caf\xc3",
            b"\xa9 ",
            b"\xe6",
            b"\x97\xa5\xe6\x9c",
            b"\xac\xe8\xaa",
            b"\x9e ",
            "👩".encode()[:2],
            "👩".encode()[2:] + b"\xe2\x80",
            b"\x8d" + "💻".encode()[:3],
            "💻".encode()[3:],
            " ok",
        ),
    ),
    Script("bad_utf8", ("bad", b" \xff\xfe", b"\xc3", "(", b"\xe6\x97", " end")),
    Script("stopword", ("one", " two S", "TO", "P three", " four")),
    Script("loop", (" round", " and", " again"), end="loop"),
    Script("long", tuple(f" n{number}" for number in range(200))),
    Script("after", ("It", " is", " sunny", " in", " Paris", "!!")),
    Script("empty", ()),
)
SCRIPTS: Mapping[str, Script] = {script.name: script for script in _STANDARD}


def expand(script: Script, family: Family, width: int) -> list[str | bytes]:
    """The script's tokens in the family's syntax; calls are cut into chunks of `width` characters.

    Where the prompt has opened the reasoning, a script without any gets a line of it and a name.
    """
    marks = dict(zip((*THINK, *HERMES_TOOL), (*family.think, *family.tool), strict=True))
    tokens: list[str | bytes] = []
    carried = ""
    for piece in script.pieces:
        if isinstance(piece, bytes):
            tokens.append(piece)
        elif isinstance(piece, str):
            first, *rest = split_marks(marks.get(piece, carried + piece), family) or [""]
            carried = "".join(rest)  # gemma's "thought" joins the piece after it, to tell scripts apart
            tokens += [first] if first else []
        else:
            body = split_marks(call_body(piece, family), family)
            chunks = [
                part[at : at + width] if part not in marks_of(family) else part
                for part in body
                for at in (range(0, len(part), width) if part not in marks_of(family) else (0,))
            ]
            tokens += [family.tool[0], *chunks, *filter(None, family.tool[1:])]
            width += 1
    if not family.opens_think:
        return tokens
    if family.think[1] in tokens:
        return tokens[1:]
    return [f"About {script.name}.", family.think[1], f"\n\n({script.name}) ", *tokens]


def answer_start(tokens: Sequence[str | bytes], family: Family) -> int:
    """The index of the first token after the reasoning."""
    return tokens.index(family.think[1]) + 1 if family.think[1] in tokens else 0
