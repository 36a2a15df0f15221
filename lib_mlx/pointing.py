"""Pictures for models that point at things, and a second model that looks at what they point at."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Constraint, Image, Message, PixelBounds, SamplingParams, TextDelta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike

    import PIL.Image

    from lib_mlx.generation import GenerationEvent
    from lib_mlx.grounding.result import Grounding, Point

Picture: TypeAlias = "bytes | str | PathLike[str] | PIL.Image.Image"
"""An image file's content or path, or a picture of Pillow's."""
_MOST_TOKENS_SHOWN = 32  # of those that the verifier's answer may begin with


def as_image(picture: Picture | Any, bounds: PixelBounds | None = None) -> Image:
    """Return a picture as a part of a message.

    Raises:
        InvalidArgument: it cannot be read.
    """
    bounds = bounds or PixelBounds()
    if isinstance(picture, bytes):
        return Image(picture, bounds, "image")
    if hasattr(picture, "save"):
        out = io.BytesIO()
        picture.save(out, "PNG")
        return Image(out.getvalue(), bounds, "image")
    try:
        return Image(Path(picture).read_bytes(), bounds, "image")
    except (OSError, TypeError, ValueError) as error:
        raise InvalidArgument(
            f"The image cannot be read: {error}.", hint="Give a file's path or content.", param="image"
        ) from error


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
        shown = as_image(fetched(circled(pixels, point.x, point.y)))
        text = question(instruction)
        return _truth(ask([Message("user", text, parts=(shown, text))], **_ONE_WORD))

    pointers = tuple(replace(pointer, points=choose(pointer.points, score)) for pointer in found.pointers)
    return replace(found, pointers=pointers)


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
