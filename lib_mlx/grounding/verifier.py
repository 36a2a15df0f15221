"""GUI-Actor's verifier: a vision model sees a candidate, circled in red, and is asked whether that was meant."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from PIL.Image import Image

    from lib_mlx.grounding.result import Point

CANDIDATES = 20
"""The most that are looked at."""
ENOUGH = 0.95
"""A candidate of that probability is taken without looking at further ones."""
_QUESTION = (
    "Please observe the screenshot and exame whether the hollow red circle accurately placed on the intended "
    "position in the image: '{}'. Answer True or False."
)
_RADIUS, _LINE = 7, 3
_AROUND = 500  # pixels on each side of the candidate


def question(instruction: str) -> str:
    """Return what the verifier is asked, in the words that it was trained on."""
    return _QUESTION.replace("{}", instruction)


def circled(picture: Image, x: float, y: float) -> Image:
    """Return what is around a point (0..1) of a picture, with a hollow red circle on the point."""
    from PIL import ImageDraw

    copy = picture.convert("RGB")
    across, down = x * copy.width, y * copy.height
    box = (across - _RADIUS, down - _RADIUS, across + _RADIUS, down + _RADIUS)
    ImageDraw.Draw(copy).ellipse(box, outline="red", width=_LINE)
    left, top = max(0, across - _AROUND), max(0, down - _AROUND)
    right, bottom = min(copy.width - 1, across + _AROUND), min(copy.height - 1, down + _AROUND)
    return copy.crop((left, top, right, bottom))  # it rounds


def probability(true: float, false: float) -> float:
    """Return P(True) among True and False, of their logits or log-probabilities."""
    return 1 / (1 + math.exp(min(false - true, 700.0)))


def choose(points: Sequence[Point], score: Callable[[Point], float]) -> tuple[Point, ...]:
    """Return the points with the best one first, by `score`; those that were not asked about keep their order."""
    asked: list[Point] = []
    for point in points[:CANDIDATES]:
        asked.append(replace(point, verified=score(point)))
        if (asked[-1].verified or 0) > ENOUGH:
            break
    best = max(asked, key=lambda point: point.verified or 0)
    return (best, *_without(asked, best), *points[len(asked) :])


def _without(points: Iterable[Point], one: Point) -> list[Point]:
    return [point for point in points if point is not one]
