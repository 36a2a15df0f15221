"""A second model that looks at what a GUI-Actor points at."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import UnsupportedFeature
from lib_mlx.generation import Constraint, Image, Message, SamplingParams, TextDelta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lib_mlx.generation import GenerationEvent
    from lib_mlx.grounding.result import Grounding, Point

_MOST_TOKENS_SHOWN = 32  # of those that the verifier's answer may begin with


def verified(
    found: Grounding, picture: Image, instruction: str, ask: Callable[..., Iterable[GenerationEvent]]
) -> Grounding:
    """Return what was found with each pointer's candidates ranked by a verifier.

    Args:
        found: by a GUI-Actor.
        picture: what it was shown.
        instruction: what it was told.
        ask: the verifier model's `stream`.
    """
    from lib_mlx.grounding.screenshot import fetched
    from lib_mlx.grounding.verifier import choose, circled, question
    from lib_mlx.models.pictures import decode

    if not isinstance(picture.source, bytes):
        raise TypeError("the picture has not been read")
    pixels = decode(picture.source, "image")

    def score(point: Point) -> float:
        png = io.BytesIO()
        fetched(circled(pixels, point.x, point.y)).save(png, "PNG")
        text = question(instruction)
        return _truth(ask([Message("user", text, parts=(Image(png.getvalue()), text))], **_ONE_WORD))

    pointers = tuple(replace(pointer, points=choose(pointer.points, score)) for pointer in found.pointers)
    return replace(found, pointers=pointers, text=_retold(found, [pointer.points[0] for pointer in pointers]))


def _retold(found: Grounding, best: list[Point]) -> str:
    """Return the action with other points in place of those that were best."""
    told, rest = "", found.text
    for pointer, point in zip(found.pointers, best, strict=True):
        before, _, rest = rest.partition("{}, {}".format(*found.pixel(pointer.points[0])))
        told += before + "{}, {}".format(*found.pixel(point))
    return told + rest


_ONE_WORD: dict[str, Any] = {
    "max_tokens": 1,
    "thinking": False,
    "sampling": SamplingParams(temperature=0),
    # What the model may say else changes nothing about the ratio of these two.
    "constraint": Constraint("regex", "True|False"),
    "logprobs": _MOST_TOKENS_SHOWN,
}


def _truth(events: Iterable[GenerationEvent]) -> float:
    """Return the probability of True among True and False as the first token."""
    from lib_mlx.grounding.verifier import probability

    for event in events:
        if isinstance(event, TextDelta) and event.tokens:
            likely = {token.bytes: token.logprob for token in event.tokens[0].top}
            if b"True" in likely and b"False" in likely:
                return probability(likely[b"True"], likely[b"False"])
    raise UnsupportedFeature(
        "The verifier's True and False are no tokens of their own.", hint="Use another model.", param="verifier"
    )
