"""What rank 0 has the others do, carried out beside it: the same network, undivided, on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.engine.mirror import FollowingGenerator, LeadingGenerator
from lib_mlx.engine.prefix_cache import PrefixCache
from lib_mlx.engine.sampling import GREEDY
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import EngineDied
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.kv_cache import new_cache
from lib_mlx.models.loader import load_weights
from lib_mlx.models.upstream import StopSequences

if TYPE_CHECKING:
    from pathlib import Path


class Ranks:
    """One other rank, which does at once as it is told."""

    def __init__(self, other: FollowingGenerator) -> None:
        self.other = other
        self.commands: list[str] = []

    def tell(self, command: dict[str, Any]) -> None:
        self.commands.append(command["do"])
        self.other.carry_out(command)


def finish(leading: LeadingGenerator, tokens: list[int], cache: list[Any], known: int, most: int) -> list[Any]:
    """Run one row to its end; return its tokens' responses."""
    leading.insert_segments([[tokens[known:]]], [most], [cache], [tokens[:known]], [GREEDY], [[]], [StopSequences()])
    made: list[Any] = []
    while not made or made[-1].finish_reason is None:
        made += leading.next()[1]
    return made


def test_caches_are_held_as_long_as_rank_0_does(crafted: Path) -> None:
    """Another rank holds a row's cache from its end on, uses it when rank 0 does, and drops it when rank 0 does."""

    def scenario() -> None:
        weights = load_weights(inspect(crafted), lambda _: None, lambda: False)
        other = FollowingGenerator(weights.network, weights.cache)
        ranks = Ranks(other)
        leading = LeadingGenerator(weights.network, weights.cache, 8, ranks)  # type: ignore[arg-type]
        prefixes = PrefixCache(1 << 30)
        prompt = list(range(5, 25))
        last = finish(leading, prompt, new_cache(weights.network), 0, 4)[-1]
        assert last.finish_reason == "length"
        assert other.held == 1
        prefixes.store(last.all_tokens, last.prompt_cache)
        del last
        cache, known = prefixes.take([*prompt[:12], 7, 8])  # cut back on both sides
        assert cache is not None
        assert known == 12
        finish(leading, [*prompt[:12], 7, 8], cache, known, 2)
        assert other._caches.keys() >= {0}
        prefixes.shrink(1 << 30)
        finish(leading, prompt, new_cache(weights.network), 0, 1)
        leading.next()
        assert other.held == 0
        assert ranks.commands.count("insert") == 3

    get_worker().run(scenario)


def test_what_only_others_have_done(crafted: Path) -> None:
    """Where rank 0 cannot do what it had the others do, the group is of no use, and whoever watches is told."""
    reported: list[str] = []

    class Told:
        def tell(self, _command: dict[str, Any]) -> None:
            """Done elsewhere."""

        def report(self, said: str) -> EngineDied:
            reported.append(said)
            return EngineDied(said)

    def scenario() -> None:
        weights = load_weights(inspect(crafted), lambda _: None, lambda: False)
        leading = LeadingGenerator(weights.network, weights.cache, 8, Told())  # type: ignore[arg-type]
        with pytest.raises(EngineDied):
            finish(leading, [], new_cache(weights.network), 0, 4)  # a prompt of no tokens

    get_worker().run(scenario)
    assert len(reported) == 1
