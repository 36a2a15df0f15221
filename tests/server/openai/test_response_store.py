"""The store: bounded, least recently used first, and true to its own count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lib_mlx.errors import InvalidArgument, NotFound, PreviousResponseNotFound
from lib_mlx.server.openai.event_log import EventLog
from lib_mlx.server.openai.response_store import ResponseStore, StoredResponse


def stored(name: str, previous: StoredResponse | None = None, *, status: str = "completed") -> StoredResponse:
    """A response of one item in and one out, some 200 bytes."""
    said: dict[str, Any] = {"type": "message", "id": f"in_{name}", "role": "user", "content": []}
    response = {"id": name, "status": status, "output": [{**said, "id": f"out_{name}", "role": "assistant"}]}
    return StoredResponse(response, (said,), previous)


def test_what_is_kept_is_found() -> None:
    """By its id, and its items by theirs, until it is removed."""
    store = ResponseStore()
    first = stored("a")
    store.add(first)
    assert store.get("a") is store.previous("a") is first
    assert store.item("out_a") is first.response["output"][0]
    assert store.item("in_a") is first.input[0]
    assert store.previous(None) is None
    store.remove(first)
    store.remove(first)
    assert (len(store), store.bytes, store.item("in_a")) == (0, 0, None)
    with pytest.raises(NotFound):
        store.get("a")
    with pytest.raises(PreviousResponseNotFound):
        store.previous("a")


def test_a_chain_is_the_whole_conversation() -> None:
    """Oldest first, and it stays whole though what it continues is found no more; then its bytes still count."""
    store = ResponseStore()
    first = stored("a")
    second = stored("b", first)
    third = stored("c", second)
    for one in (first, second, third):
        store.add(one)
    whole = store.bytes
    store.remove(first)
    store.remove(second)
    assert store.bytes == whole
    assert [item["id"] for item in third.history()] == ["in_a", "out_a", "in_b", "out_b"]
    store.remove(third)
    assert store.bytes == 0


def test_a_chain_that_was_forgotten_meanwhile_counts_again() -> None:
    """A response may be given up while another that continues it is being made."""
    store = ResponseStore()
    first = stored("a")
    store.add(first)
    alone = store.bytes
    store.remove(first)
    store.add(stored("b", first))
    assert store.bytes > alone
    assert len(store) == 1


def test_the_least_recently_used_goes_first() -> None:
    """Being asked for is use."""
    store = ResponseStore(max_responses=2)
    store.add(stored("a"))
    store.add(stored("b"))
    store.get("a")
    store.add(stored("c"))
    assert len(store) == 2
    assert store.get("a").id == "a"
    with pytest.raises(NotFound):
        store.get("b")


def test_many_responses_stay_within_the_bounds() -> None:
    """Count and bytes are bounded, in chains and apart, and one that is too large is not kept at all."""
    store = ResponseStore(max_responses=50, max_bytes=5000)
    previous = None
    for number in range(500):
        one = stored(str(number), previous if number % 10 else None)
        store.add(one)
        previous = one
        assert len(store) <= 50
        assert store.bytes <= 5000
    assert store.get("499").id == "499"
    large = stored("large")
    large.response["text"] = "x" * 6000
    store.add(large)
    assert (len(store), store.bytes) == (0, 0)


def test_one_in_the_making_is_never_given_up() -> None:
    """Whoever polls it must find it; it counts anew when it is finished, and cannot be continued before."""
    store = ResponseStore(max_responses=1, max_bytes=1000)
    running = stored("a", status="in_progress")
    running.log = EventLog()
    store.add(running)
    for name in "bcd":
        store.add(stored(name))
        assert store.get("a") is running
    with pytest.raises(InvalidArgument) as caught:
        store.previous("a")
    assert caught.value.param == "previous_response_id"
    before = store.bytes
    running.log.extend([b"x" * 500])
    running.response |= {"status": "completed", "output": [{"id": "late"}]}
    store.settle(running)
    assert before < store.bytes <= 1000
    assert store.item("late") == {"id": "late"}
    store.add(stored("e"))
    with pytest.raises(NotFound):
        store.get("a")


class Machine(RuleBasedStateMachine):
    """Any order of adding, using, removing and finishing."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ResponseStore(max_responses=5, max_bytes=1500)
        self.made: list[StoredResponse] = []

    @rule(at=st.integers(0, 20) | st.none(), running=st.booleans())
    def add(self, at: int | None, running: bool) -> None:
        finished = [one for one in self.made if not one.running]
        previous = finished[at % len(finished)] if at is not None and finished else None
        one = stored(str(len(self.made)), previous, status="queued" if running else "completed")
        self.made.append(one)
        self.store.add(one)

    @rule(at=st.integers(0, 20))
    def remove(self, at: int) -> None:
        if self.made:
            self.store.remove(self.made[at % len(self.made)])

    @rule(at=st.integers(0, 20))
    def use(self, at: int) -> None:
        if self.made and self.made[at % len(self.made)].id in self.store._listed:
            self.store.get(self.made[at % len(self.made)].id)

    @rule(at=st.integers(0, 20))
    def finish(self, at: int) -> None:
        running = [one for one in self.made if one.running]
        if running:
            one = running[at % len(running)]
            one.response |= {"status": "completed", "text": "x" * at}
            self.store.settle(one)

    @invariant()
    def the_count_is_true(self) -> None:
        """The bytes are those of all that can be reached, and the bounds hold but for what is being made."""
        listed = list(self.store._listed.values())
        reached = set()
        for one in listed:
            at: StoredResponse | None = one
            while at is not None:
                reached.add(at)
                at = at.previous
        assert self.store.bytes == sum(one.size for one in reached)
        finished = [one for one in listed if not one.running]
        assert not finished or (len(listed) <= 5 and self.store.bytes <= 1500)
        assert {one.id for one in self.store._places.values()} <= {one.id for one in listed}


Machine.TestCase.settings = settings(max_examples=50, deadline=None)
TestMachine = Machine.TestCase
