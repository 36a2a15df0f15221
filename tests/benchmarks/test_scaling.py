"""The simulation of replicas behind a balancer."""

from __future__ import annotations

from benchmarks.scaling import POLICIES, REPLICAS, draw, simulate, speed


def test_a_known_prefix_saves_time() -> None:
    """Who finds the replica that knows the conversation waits less than who takes any; alone there is no choice."""
    found = {policy: simulate(10, policy) for policy in POLICIES}
    assert found["computed"]["hits"] > found["prefix"]["hits"] > 2 * found["least"]["hits"]
    assert found["computed"]["median"] < found["prefix"]["median"] < found["turn"]["median"]
    assert simulate(1, "turn") == simulate(1, "least")


def test_speed_lies_between_the_measured() -> None:
    """Between two measured numbers of streams the speed is between theirs."""
    assert speed(1) < speed(2) < speed(4) < speed(6) < speed(8)


def test_the_picture_has_a_line_for_each() -> None:
    """One line per way to choose."""
    results = {(count, policy): {"p95": 1.0} for count in REPLICAS for policy in POLICIES}
    assert draw(results).count("<polyline") == len(POLICIES)
