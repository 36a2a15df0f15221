"""From a map of attention over patches to points: connected regions of high scores, best first. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

THRESHOLD = 0.3
"""Of the highest score: patches above it belong to a region."""


@dataclass(frozen=True, slots=True)
class Region:
    """Patches that touch each other."""

    x: float
    """The centre, each patch weighted with its score; 0 is the image's left edge, 1 its right one."""
    y: float
    """Likewise; 0 is the top."""
    score: float
    """The mean of its patches'; the scores of a whole map add up to one."""
    patches: tuple[int, ...]
    """Row by row from the top left, in the order in which a walk from the first one finds them."""


def find_regions(
    scores: Sequence[float], columns: int, *, threshold: float = THRESHOLD, most: int | None = None
) -> tuple[Region, ...]:
    """Return the regions of a map, best first; of equal ones, first found.

    Args:
        scores: one per patch, row by row from the top left.
        columns: patches in a row.
        threshold: patches must score above this share of the highest score.
        most: only so many of the highest-scoring patches count.
    """
    limit = max(scores) * threshold
    active = [index for index, score in enumerate(scores) if score > limit]
    if most is not None and len(active) > most:
        active = sorted(active, key=lambda index: -scores[index])[:most]
    left = dict.fromkeys(active)
    regions = []
    while left:
        start = next(iter(left))
        del left[start]
        regions.append(_region(_connected(start, left, columns), scores, columns))
    return tuple(sorted(regions, key=lambda region: -region.score))


def _connected(start: int, left: dict[int, None], columns: int) -> list[int]:
    """Take what is connected with `start` out of `left` and return all of it."""
    found, queue = [start], deque([start])
    while queue:
        for index in _neighbours(queue.popleft(), columns):
            if index in left:
                del left[index]
                found.append(index)
                queue.append(index)
    return found


def _neighbours(index: int, columns: int) -> Iterator[int]:
    yield index - columns
    yield index + columns
    if index % columns:
        yield index - 1
    if (index + 1) % columns:
        yield index + 1


def _region(patches: list[int], scores: Sequence[float], columns: int) -> Region:
    rows = len(scores) // columns
    total = sum(scores[index] for index in patches)
    x = sum((index % columns + 0.5) / columns * scores[index] for index in patches) / total
    y = sum((index // columns + 0.5) / rows * scores[index] for index in patches) / total
    return Region(x, y, total / len(patches), tuple(patches))
