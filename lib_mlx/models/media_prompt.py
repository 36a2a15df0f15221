"""Prompts with images and sounds: what stands for them among the tokens. No MLX; any thread.

Each token of an image or a sound becomes a number made of its digest and the token's place in it. Numbers are negative,
so that they are no tokens, and equal exactly where the same pixels or samples stand: prompts that share them share
their caches.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image as Pixels

    from lib_mlx.generation import MediaKind, PixelBounds

    Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Shape:
    """What of an image or a sound a prompt depends on."""

    tokens: tuple[int, ...]
    """What stands for it in the prompt, as the tokenizer has it."""
    grid: tuple[int, int, int] | None = None
    """Its patches in time, height and width, if the model counts so."""


@dataclass(frozen=True, eq=False)
class Medium:
    """An image or a sound as it enters the model."""

    kind: MediaKind
    digest: str
    shape: Shape


@dataclass(frozen=True, eq=False)
class Picture(Medium):
    """An image."""

    pixels: Pixels = field(repr=False)
    bounds: PixelBounds


@dataclass(frozen=True, eq=False)
class Recording(Medium):
    """A sound."""

    samples: NDArray[np.float32] = field(repr=False)
    """At the model's rate, of shape (samples,)."""


@dataclass(frozen=True, eq=False)
class Clip(Medium):
    """Frames of a video."""

    frames: NDArray[np.uint8] = field(repr=False)
    """Of shape (frames, 3, height, width)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of an image or a sound in a prompt, and where their features are in those of the whole."""

    start: int
    stop: int
    medium: str
    """Its digest."""
    first: int = 0
    """The feature of the first token."""


@dataclass(frozen=True, eq=False)
class PromptMedia:
    """The images and sounds of one prompt."""

    tokens: list[int]
    """The whole prompt as the tokenizer has it."""
    stand_in: int
    """A token of the vocabulary for what stands for a piece of a medium."""
    spans: tuple[Span, ...]
    media: Mapping[str, Medium]
    """By digest."""
    grids: tuple[tuple[int, int, int], ...]
    """Of each image in the prompt, in order; empty if the model has none."""
    video_grids: tuple[tuple[int, int, int], ...] = ()
    """Of each video."""


def place_media(
    prompt: Sequence[int], media: Sequence[Medium], placeholders: Mapping[MediaKind, int], boundaries: Sequence[int]
) -> tuple[list[int], PromptMedia, tuple[int, ...]]:
    """Return the prompt with numbers for its media, these, and `boundaries` moved to where they are then.

    Args:
        prompt: as the chat template has it: one token for each medium, and no other one of these.
        media: those of each kind in the order in which they stand there.
        placeholders: the token of each kind.
        boundaries: places in `prompt`.
    """
    by_token = {token: [one for one in media if one.kind == kind] for kind, token in placeholders.items()}
    rest: dict[int, Iterator[Medium]] = {token: iter(ones) for token, ones in by_token.items()}
    tokens: list[int] = []
    numbers: list[int] = []
    spans: list[Span] = []
    moved = {}
    marks = frozenset(boundaries)
    for at, token in enumerate(prompt):
        if at in marks:
            moved[at] = len(tokens)
        if token not in rest:
            tokens.append(token)
            numbers.append(token)
            continue
        medium = next(rest[token])
        spans += _spans(medium, len(tokens), token)
        numbers += _numbers(medium, token)
        tokens += medium.shape.tokens
    grids, video_grids = (
        tuple(one.shape.grid for one in media if one.shape.grid and one.kind == kind) for kind in ("image", "video")
    )
    stand_in = next(placeholders[one.kind] for one in media)
    placed = PromptMedia(tokens, stand_in, tuple(spans), {one.digest: one for one in media}, grids, video_grids)
    return numbers, placed, tuple(moved.get(place, len(tokens)) for place in boundaries)


def _spans(medium: Medium, begin: int, placeholder: int) -> list[Span]:
    """Return where features stand, of a medium whose tokens begin at `begin`."""
    spans: list[Span] = []
    count = 0
    for at, token in enumerate(medium.shape.tokens, begin):
        if token != placeholder:
            continue
        if spans and spans[-1].stop == at:
            spans[-1] = Span(spans[-1].start, at + 1, medium.digest, spans[-1].first)
        else:
            spans.append(Span(at, at + 1, medium.digest, count))
        count += 1
    return spans


def _numbers(medium: Medium, placeholder: int) -> list[int]:
    tokens = medium.shape.tokens
    hashed = hashlib.shake_256(medium.digest.encode()).digest(4 * len(tokens))
    negative = (-1 - (np.frombuffer(hashed, "<u4") >> 1).astype(np.int64)).tolist()
    return [own if token == placeholder else token for token, own in zip(tokens, negative, strict=True)]
