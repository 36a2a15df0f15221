"""What replicas behind a balancer do, from 1 to 1,000 of them: a simulation from one node's measured speed.

`python -m benchmarks.scaling` prints a table and draws `benchmarks/results/scaling.svg`. Each replica has the speed of
`docs/performance.md` (SmolLM2-135M on two cores): prefill tokens/s, tokens/s of each stream by how many there are, and
a bounded cache of conversations. Conversations of several turns come at random; each turn's prompt is all turns before
it. The load grows with the replicas. Compared: any replica in turn, the one with the fewest requests, and the one that
`X-Prefix-Hash` names (the fewest-loaded if that one has a queue): sent back from the second turn on, or computed by the
client from the first.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

PREFILL = 228.0  # tokens per second, docs/performance.md
STREAMS = {1: 53.5, 4: 153.0, 8: 219.9}  # tokens per second of all streams together
ROWS = 8  # decoded together; more wait
KEPT = 12  # conversations whose cache a replica keeps
SYSTEM, TURN, ANSWER = 120, 40, 40  # tokens
TURNS = 5
THINKING_S = 10.0  # between an answer and the next turn
LOAD = 0.10  # conversations that begin per second and replica
REPLICAS = (1, 3, 10, 30, 100, 300, 1000)
CONVERSATIONS = 40  # per replica, but no more than
MOST = 20000
POLICIES = ("turn", "least", "prefix", "computed")
_NAMES = {
    "turn": "round robin",
    "least": "least loaded",
    "prefix": "X-Prefix-Hash, sent back",
    "computed": "X-Prefix-Hash, computed",
}


def speed(rows: int) -> float:
    """Return the tokens per second of all of so many streams."""
    below = max((known for known in STREAMS if known <= rows), default=1)
    above = min((known for known in STREAMS if known >= rows), default=max(STREAMS))
    if below == above:
        return STREAMS[below]
    part = (rows - below) / (above - below)
    return STREAMS[below] + part * (STREAMS[above] - STREAMS[below])


@dataclass
class Replica:
    """One server: prompts are processed one after the other, answers together."""

    prefill_free: float = 0.0
    running: list[float] = field(default_factory=list)
    """When each running answer ends."""
    kept: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def load(self, now: float) -> int:
        """Return how many requests it has."""
        while self.running and self.running[0] <= now:
            heapq.heappop(self.running)
        return len(self.running)

    def serve(self, now: float, conversation: int, prompt: int, known: int) -> tuple[float, float, bool]:
        """Take a request in; return when its first token comes, when its last, and whether its prefix was known."""
        rows = self.load(now)
        hit = conversation in self.kept
        begin = max(now, self.prefill_free, self.running[rows - ROWS] if rows >= ROWS else 0.0)
        work = prompt - known if hit else prompt
        first = begin + work / PREFILL
        self.prefill_free = first
        last = first + ANSWER / (speed(min(rows + 1, ROWS)) / min(rows + 1, ROWS))
        heapq.heappush(self.running, last)
        self.kept[conversation] = None
        self.kept.move_to_end(conversation)
        if len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return first, last, hit


def simulate(count: int, policy: str, seed: int = 0) -> dict[str, float]:
    """Return what clients see of `count` replicas."""
    rng = random.Random(seed)
    replicas = [Replica() for _ in range(count)]
    homes: dict[int, int] = {}
    events: list[tuple[float, int, int]] = []  # when, conversation, turn
    at = 0.0
    for conversation in range(min(MOST, CONVERSATIONS * count)):
        at += rng.expovariate(LOAD * count)
        heapq.heappush(events, (at, conversation, 0))
    waits, hits, tokens, end, turn_of = [], 0, 0, 0.0, 0
    while events:
        now, conversation, turn = heapq.heappop(events)
        chosen, turn_of = choose(policy, replicas, now, (conversation, turn), homes, turn_of, rng)
        prompt = SYSTEM + (turn + 1) * TURN + turn * ANSWER
        first, last, hit = replicas[chosen].serve(now, conversation, prompt, prompt - TURN)
        waits.append(first - now)
        hits += hit
        tokens += ANSWER
        end = max(end, last)
        if turn + 1 < TURNS:
            heapq.heappush(events, (last + rng.expovariate(1 / THINKING_S), conversation, turn + 1))
    waits.sort()
    return {
        "median": statistics.median(waits),
        "p95": waits[int(0.95 * len(waits))],
        "hits": hits / len(waits),
        "tokens": tokens / end,
    }


def choose(
    policy: str,
    replicas: list[Replica],
    now: float,
    request: tuple[int, int],
    homes: dict[int, int],
    turn_of: int,
    rng: random.Random,
) -> tuple[int, int]:
    """Return the replica a balancer takes, and whose turn it is then."""
    if policy == "turn":
        return turn_of, (turn_of + 1) % len(replicas)
    conversation, turn = request
    if policy == "computed" or (policy == "prefix" and turn):
        home = homes.setdefault(conversation, rng.randrange(len(replicas)))  # as a hash is
        if replicas[home].load(now) < ROWS:
            return home, turn_of
    # Of all of a few, else of as many as a balancer compares: two at random do nearly as well.
    looked = range(len(replicas)) if len(replicas) <= 16 else rng.sample(range(len(replicas)), 4)
    return min(looked, key=lambda index: (replicas[index].load(now), replicas[index].prefill_free)), turn_of


def draw(results: dict[tuple[int, str], dict[str, float]]) -> str:
    """Return a picture of the 95th percentile of the time to the first token."""
    width, height, left, top = 640, 320, 60, 30
    most = max(result["p95"] for result in results.values())
    colours = {"turn": "#b44", "least": "#c90", "prefix": "#285", "computed": "#25a"}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 60}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{left}" y="18">first token, 95th percentile, s, by the number of replicas (simulated)</text>',
    ]
    for step in range(5):
        y = top + height - step * height / 4
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="8" y="{y + 4}">{step * most / 4:.1f}</text>')
    places = {count: left + 20 + at * (width - left - 60) / (len(REPLICAS) - 1) for at, count in enumerate(REPLICAS)}
    parts += [f'<text x="{x - 8}" y="{top + height + 18}">{count}</text>' for count, x in places.items()]
    for at, policy in enumerate(POLICIES):
        points = " ".join(
            f"{places[count]:.1f},{top + height - results[count, policy]['p95'] / most * height:.1f}"
            for count in REPLICAS
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[policy]}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 140 * at}" y="{height + 75}" fill="{colours[policy]}">{_NAMES[policy]}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    results = {(count, policy): simulate(count, policy) for count in REPLICAS for policy in POLICIES}
    print(
        "| replicas | balancer | first token, median, s | 95 % | prefixes known | tokens/s |\n|---|---|---|---|---|---|"
    )
    for (count, policy), found in results.items():
        print(
            f"| {count} | {_NAMES[policy]} | {found['median']:.2f} | {found['p95']:.2f} "
            f"| {found['hits']:.0%} | {found['tokens']:.0f} |"
        )
    Path(__file__).with_name("results").joinpath("scaling.svg").write_text(draw(results))


if __name__ == "__main__":
    main()
