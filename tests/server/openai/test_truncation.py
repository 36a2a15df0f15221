"""Dropping the oldest turns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from lib_mlx.server.openai.truncation import fitted

if TYPE_CHECKING:
    from collections.abc import Sequence

ROLES = st.sampled_from(["user", "assistant", "system", None])


def cut(roles: list[Any], limit: int) -> tuple[list[Any], int]:
    """Fit items of these roles (None: a tool call) into `limit` items; return what is left, and the attempts."""
    items = [
        {"id": index, **({"role": role} if role else {"type": "function_call"})} for index, role in enumerate(roles)
    ]
    attempts = 0

    async def fits(kept: Sequence[Any]) -> bool:
        nonlocal attempts
        attempts += 1
        return len(kept) <= limit

    return list(asyncio.run(fitted(items, fits))), attempts


@given(st.lists(ROLES, max_size=30), st.integers(0, 30))
def test_as_few_turns_as_need_be_are_dropped(roles: list[Any], limit: int) -> None:
    """What is left begins with a turn, is the longest that fits, and has all instructions that stood before it."""
    kept, attempts = cut(roles, limit)
    assert attempts <= 7
    if len(roles) <= limit or "user" not in roles[roles.index("user") + 1 if "user" in roles else 0 :]:
        assert len(kept) == len(roles)
        return
    places = [item["id"] for item in kept]
    start = next(place for place in places if roles[place] != "system")
    assert roles[start] == "user"
    assert places == [place for place, role in enumerate(roles) if place >= start or role == "system"]
    users = [place for place, role in enumerate(roles) if role == "user"]
    if len(kept) > limit:
        assert start == users[-1]
    elif (at := users.index(start)) > 1:
        longer = [place for place, role in enumerate(roles) if place >= users[at - 1] or role == "system"]
        assert len(longer) > limit
