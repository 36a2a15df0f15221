"""The radix tree of KV caches, with caches that record how they were cut."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_mlx.engine.prefix_cache import PrefixCache


class Layer:
    """Stands for one layer's KV: as many bytes as tokens."""

    def __init__(self, tokens: list[int], *, trimmable: bool = True) -> None:
        self.tokens = list(tokens)
        self.trimmable = trimmable

    @property
    def nbytes(self) -> int:
        return len(self.tokens)

    def is_trimmable(self) -> bool:
        return self.trimmable

    def trim(self, count: int) -> int:
        assert self.trimmable
        del self.tokens[len(self.tokens) - count :]
        return count


def store(cache: PrefixCache, *tokens: int, trimmable: bool = True, salt: str = "") -> None:
    """Store an entry for `tokens`."""
    cache.store(tokens, [Layer(list(tokens), trimmable=trimmable)], salt)


def held(cache: PrefixCache, *tokens: int, salt: str = "") -> list[int]:
    """What `take` gives for `tokens`."""
    found, length = cache.take(tokens, salt)
    if found is None:
        assert length == 0
        return []
    assert len(found[0].tokens) == length
    return list(found[0].tokens)


def test_the_longest_prefix_is_found() -> None:
    """A prompt takes what it shares with an entry, and always leaves one token over."""
    cache = PrefixCache(1000)
    store(cache, 1, 2, 3, 4)
    assert held(cache, 1, 2, 3, 4, 5) == [1, 2, 3, 4]
    assert held(cache, 1, 2, 3, 4) == [1, 2, 3]
    assert held(cache, 1, 2, 9) == [1, 2]
    assert held(cache, 1) == []
    assert held(cache, 9, 1) == []


def test_a_cache_that_cannot_be_cut_is_used_whole_or_not_at_all() -> None:
    """Without trimming only entries that are prefixes themselves help."""
    cache = PrefixCache(1000)
    store(cache, 1, 2, 3, trimmable=False)
    store(cache, 1, 2, 3, 4, 5, trimmable=False)
    assert held(cache, 1, 2, 3, 4, 5) == [1, 2, 3]
    assert held(cache, 1, 2, 3, 4, 5, 6) == [1, 2, 3, 4, 5]
    assert held(cache, 1, 2) == []


def test_taking_is_a_copy() -> None:
    """What a request does to its cache does not change the entry."""
    cache = PrefixCache(1000)
    store(cache, 1, 2, 3)
    found, _ = cache.take([1, 2, 3, 4])
    assert found is not None
    found[0].tokens.append(99)
    assert held(cache, 1, 2, 3, 4) == [1, 2, 3]


def test_the_least_recently_used_entry_goes_first() -> None:
    """Taking refreshes an entry; the bound in bytes holds."""
    cache = PrefixCache(6)
    store(cache, 1, 1, 1)
    store(cache, 2, 2, 2)
    assert held(cache, 1, 1, 1, 5) == [1, 1, 1]
    store(cache, 3, 3, 3)
    assert cache.nbytes <= 6
    assert held(cache, 2, 2, 2, 5) == []
    assert held(cache, 1, 1, 1, 5) == [1, 1, 1]


def test_an_entry_replaces_the_prefixes_it_serves() -> None:
    """A growing conversation holds one entry, not one per turn; a shorter one later adds nothing."""
    cache = PrefixCache(1000)
    store(cache, 1, 2)
    store(cache, 1, 2, 3)
    store(cache, 1, 2, 3, 4)
    assert (len(cache), cache.nbytes) == (1, 4)
    store(cache, 1, 2)
    assert (len(cache), cache.nbytes) == (1, 4)
    store(cache, 1, 2, 9)
    assert (len(cache), cache.nbytes) == (2, 7)


def test_salts_are_separate() -> None:
    """One tenant's prompts do not speed up another's."""
    cache = PrefixCache(1000)
    store(cache, 1, 2, 3, salt="a")
    assert held(cache, 1, 2, 3, 4, salt="b") == []
    assert held(cache, 1, 2, 3, 4, salt="a") == [1, 2, 3]


def test_a_salt_leaves_with_its_last_entry() -> None:
    """Clients choose them, and there is no end of them."""
    cache = PrefixCache(10)
    for number in range(20):
        store(cache, 1, 2, 3, 4, salt=f"tenant {number}")
    assert list(cache._roots) == ["tenant 18", "tenant 19"]
    assert held(cache, 1, 2, 3, 4, 5, salt="tenant 19") == [1, 2, 3, 4]


def test_what_is_too_large_or_empty_is_not_stored() -> None:
    """An entry beyond the bound would evict everything for nothing."""
    cache = PrefixCache(3)
    store(cache, 1, 2)
    store(cache, 5, 5, 5, 5)
    cache.store([], [])
    assert (len(cache), held(cache, 1, 2, 3)) == (1, [1, 2])


RUN = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@pytest.mark.parametrize("trimmable", [True, False])
@given(entries=st.lists(RUN, max_size=12), query=RUN, bound=st.integers(5, 60))
def test_against_a_plain_search(trimmable: bool, entries: list[list[int]], query: list[int], bound: int) -> None:
    """What is found is as long as a search over all live entries finds, and the books balance."""
    cache = PrefixCache(bound)
    for entry in entries:
        store(cache, *entry, trimmable=trimmable)
    live = [node.cache[0].tokens for node in cache._recent if node.cache]
    assert cache.nbytes == sum(map(len, live)) <= bound

    def usable(entry: list[int]) -> int:
        shared = next(
            (i for i, (a, b) in enumerate(zip(entry, query, strict=False)) if a != b), min(len(entry), len(query))
        )
        shared = min(shared, len(query) - 1)
        return shared if trimmable or shared == len(entry) else 0

    assert len(held(cache, *query)) == max(map(usable, live), default=0)


def test_a_long_history_is_found_in_under_a_millisecond() -> None:
    """32k tokens, among a hundred other conversations that share its beginning."""
    cache = PrefixCache(1 << 30)
    rng = np.random.default_rng(0)
    system = rng.integers(0, 50_000, 2000).tolist()
    history = system + rng.integers(0, 50_000, 30_000).tolist()
    for _ in range(100):
        cache.store(system + rng.integers(0, 50_000, 500).tolist(), _Light())
    cache.store(history, _Light())
    query = np.asarray([*history, 1, 2, 3], np.int32)
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        _, length = cache.take(query)
        times.append(time.perf_counter() - begun)
    assert length == len(history)
    assert min(times) < 0.001


class _Light(list[Any]):
    """A cache that costs nothing to copy."""

    def __init__(self) -> None:
        super().__init__([Layer([1])])
