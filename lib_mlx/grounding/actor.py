"""Points at what an instruction names: prompt and picture in, points out, in steps that others' work fits between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from lib_mlx.errors import CorruptModel, TargetNotFound
from lib_mlx.grounding.interface import answer_text
from lib_mlx.grounding.regions import find_regions
from lib_mlx.grounding.result import Grounding, Point, Pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from lib_mlx.grounding.backbone import Backbone, Embedded
    from lib_mlx.grounding.interface import Interface
    from lib_mlx.grounding.pointer_head import PointerHead
    from lib_mlx.grounding.screenshot import Screenshot

CHUNK = 256
"""Tokens of a prompt at a time: what others' streams wait for."""


@dataclass(frozen=True)
class GroundingPrompt:
    """A picture and an instruction, tokenised."""

    tokens: list[int]
    screenshot: Screenshot
    max_tokens: int = 0
    """The most tokens of an answer that the model makes up; 0: the prompt ends with one pointer."""


class GuiActor:
    """A GUI-Actor model. Engine thread only.

    Args:
        backbone: its language model and vision tower.
        head: its pointer head.
        interface: its special tokens.
        decode: from tokens to text, special ones included.
    """

    def __init__(
        self, backbone: Backbone, head: PointerHead, interface: Interface, decode: Callable[[list[int]], str]
    ) -> None:
        self._backbone = backbone
        self._head = head
        self._interface = interface
        self._decode = decode

    def close(self) -> None:
        """Let go of the model."""
        self._backbone = self._head = None  # type: ignore[assignment]

    def ground(self, prompt: GroundingPrompt, features: mx.array) -> Generator[int, None, Grounding]:
        """Find what a prompt means; at each `yield`, of the tokens made so far, others may have their turn.

        Args:
            prompt: picture and instruction.
            features: (merged patches, width), what the vision tower made of the picture.

        Raises:
            TargetNotFound: the model's own answer has no pointer.
            CorruptModel: the weights give no numbers.
        """
        made, attention = yield from self.attend(prompt, features)
        pictured = prompt.screenshot
        pointers = tuple(_pointer(scores, pictured.columns) for scores in attention)
        found = Grounding("", pointers, pictured.width, pictured.height, pictured.columns, pictured.rows)
        text = self._decode(made) if prompt.max_tokens else None
        pixels = [found.pixel(pointer.points[0]) for pointer in pointers]
        text = answer_text(text, pixels)
        return Grounding(text, pointers, found.width, found.height, found.columns, found.rows)

    def attend(
        self, prompt: GroundingPrompt, features: mx.array
    ) -> Generator[int, None, tuple[list[int], list[list[float]]]]:
        """Return the tokens that were made and, for each pointer, the attention over patches; see `ground`."""
        embedded = self._backbone.embed(prompt.tokens, features, prompt.screenshot.grid)
        cache = self._backbone.new_cache()
        pointers: list[Any] = []
        count = len(prompt.tokens)
        last: Any = None
        for start in range(0, count, CHUNK):
            end = min(start + CHUNK, count)
            last = self._backbone.states(embedded, start, end, cache)
            pointers += [last[at : at + 1] for at in self._pads(prompt.tokens[start:end])]
            yield 0
        made: list[int] = []
        if prompt.max_tokens:
            made = yield from self._generate(prompt, embedded, cache, last[-1:], pointers)
        if not pointers:
            raise TargetNotFound(
                f"The model pointed at nothing; it said {answer_text(self._decode(made), [])!r}.",
                hint="Name something that is on the picture.",
            )
        attention = self._head.attention(features, mx.concatenate(pointers))
        return made, attention.tolist()  # type: ignore[return-value]  # two dimensions make lists of lists

    def _generate(
        self, prompt: GroundingPrompt, embedded: Embedded, cache: list[Any], state: mx.array, pointers: list[Any]
    ) -> Generator[int, None, list[int]]:
        """Make up an answer, the likeliest tokens; adds the states of its pointers to `pointers`."""
        made: list[int] = []
        position = len(prompt.tokens) + embedded.delta
        while len(made) < prompt.max_tokens:
            if made and made[-1] == self._interface.pad:  # the head has taken over: this token means nothing
                token = self._interface.end
            else:
                token = cast("int", mx.argmax(self._backbone.logits(state)[-1]).item())
            made.append(token)
            if token in self._interface.stops:
                break
            state = self._backbone.next_state(token, position + len(made) - 1, cache)
            if token == self._interface.pad:
                pointers.append(state)
            mx.eval(state)
            yield len(made)
        return made

    def _pads(self, tokens: Sequence[int]) -> list[int]:
        return [at for at, token in enumerate(tokens) if token == self._interface.pad]


def _pointer(scores: list[float], columns: int) -> Pointer:
    regions = find_regions(scores, columns)
    if not regions:
        raise CorruptModel("The model's attention is not a number.", hint="Fetch or convert the model again.")
    return Pointer(tuple(Point(region.x, region.y, region.score) for region in regions), tuple(scores))
