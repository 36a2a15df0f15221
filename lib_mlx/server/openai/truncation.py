"""`truncation: "auto"`: the oldest turns of a conversation are dropped until it fits the model's context.

Turns are dropped whole, from one message of the user's to the next: half of one, such as a tool's output without its
call, is nothing that a chat template would read. Messages of the system and of developers stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lib_mlx.server.openai.response_items import Item


async def fitted(items: Sequence[Item], fits: Callable[[Sequence[Item]], Awaitable[bool]]) -> Sequence[Item]:
    """Return `items` without as few of the oldest turns as need be; at least the last turn, whether it fits or not."""
    if await fits(items):
        return items
    starts = [index for index, item in enumerate(items) if item.get("role") == "user"][1:]
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if await fits(_from(items, starts[middle])):
            high = middle
        else:
            low = middle + 1
    return _from(items, starts[low]) if starts else items


def _from(items: Sequence[Item], start: int) -> list[Item]:
    """Return `items` from `start` on, behind the instructions that stand before it."""
    kept = [item for item in items[:start] if item.get("role") in {"system", "developer"}]
    return [*kept, *items[start:]]
