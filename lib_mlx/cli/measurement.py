"""How fast servers answer, asked in turn over HTTP."""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lib_mlx.cli.client import connect
from lib_mlx.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_WORDS = ("river", "stone", "lamp", "cloud", "paper", "garden", "wheel", "music", "winter", "bridge")
_STREAMS = 4


@dataclass(frozen=True)
class Server:
    """Where to ask, and for which model."""

    name: str
    base_url: str
    model: str
    api_key: str | None = None


@dataclass(frozen=True)
class Answer:
    """How one answer came."""

    first_s: float
    """From the request to its first token."""
    seconds: float
    """From the first token to the last."""
    tokens: int


def prompt(words: int, run: int) -> str:
    """Return a text that no cache knows from an earlier run."""
    told = " ".join(_WORDS[(at * 7 + run) % len(_WORDS)] for at in range(words))
    return f"Run {run}. Go on with this list of words: {told}"


def ask(server: Server, text: str, max_tokens: int) -> Answer:
    """Stream one answer of Chat Completions.

    Raises:
        Internal: the server refuses, or does not answer.
    """
    connection = connect(server.base_url)
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.api_key or 'unused'}"}
    begun = time.perf_counter()
    try:
        connection.request(
            "POST", f"{urlsplit(server.base_url).path.rstrip('/')}/v1/chat/completions", json.dumps(body), headers
        )
        response = connection.getresponse()
        if response.status != 200:
            raise Internal(f"{server.name} answers {response.status}: {response.read(300).decode(errors='replace')}")
        times, tokens = [], 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if any((choice.get("delta") or {}).get("content") for choice in chunk.get("choices") or ()):
                times.append(time.perf_counter())
            tokens = (chunk.get("usage") or {}).get("completion_tokens") or tokens
    except (OSError, HTTPException, ValueError) as error:
        raise Internal(f"{server.name} does not answer: {error}.") from None
    finally:
        connection.close()
    if not times:
        raise Internal(f"{server.name} has said nothing.")
    return Answer(times[0] - begun, times[-1] - times[0], tokens or len(times))


def measure(server: Server, run: int, words: int, tokens: int) -> dict[str, float]:
    """Return the figures of one run: one stream, then several at once."""
    long = ask(server, prompt(words, run), 1)
    single = ask(server, prompt(8, run), tokens)
    begun = time.perf_counter()
    with ThreadPoolExecutor(_STREAMS) as pool:
        several = list(pool.map(lambda at: ask(server, prompt(8, run * 100 + at), tokens), range(_STREAMS)))
    together = time.perf_counter() - begun
    return {
        "first token, s": long.first_s,
        "tokens/s": (single.tokens - 1) / max(single.seconds, 1e-9),
        f"tokens/s, {_STREAMS} streams": sum(answer.tokens for answer in several) / together,
    }


LOWER_IS_BETTER = frozenset({"first token, s"})


def compare(
    servers: Sequence[Server], runs: int, words: int, tokens: int, tell: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Return the medians of each server, asked in turn; the first answer of each is not counted."""
    for server in servers:
        tell(f"warming up {server.name}")
        ask(server, prompt(8, 9999), 4)
    found: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    for run in range(runs):
        for server in servers:
            tell(f"run {run + 1} of {runs}: {server.name}")
            found[server.name].append(measure(server, run, words, tokens))
    return {
        name: {key: statistics.median(one[key] for one in results) for key in results[0]}
        for name, results in found.items()
    }


def ratio(name: str, ours: float, theirs: float) -> float:
    """Return how many times better `ours` is."""
    return theirs / ours if name in LOWER_IS_BETTER else ours / theirs


def table(told: Mapping[str, Any]) -> str:
    """Return the figures as a table."""
    found, ratios = told["medians"], told.get("ratios")
    lines = [f"{'':22}" + "".join(f"{name:>12}" for name in found) + (f"{'times better':>14}" if ratios else "")]
    for name, ours in found["lib_mlx"].items():
        row = f"{name:22}{ours:12.2f}"
        if ratios:
            row += f"{found['the other'][name]:12.2f}{ratios[name]:14.2f}"
        lines.append(row)
    lines.append(f"{'memory, MB':22}{told['memory_bytes'] / 1e6:12.0f}")
    return "\n".join(lines)


def picture(ratios: Mapping[str, float], against: str) -> str:
    """Return a bar for each ratio, with a line at 1: as good as the other."""
    from xml.sax.saxutils import escape

    scale, height = 300 / max(1.0, *ratios.values()), 34
    bars = []
    for at, (name, value) in enumerate(ratios.items()):
        y, width = 46 + at * height, value * scale
        bars.append(f'<text x="170" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        bars.append(f'<rect x="180" y="{y}" width="{width:.1f}" height="22" fill="#1f6f64"/>')
        bars.append(f'<text x="{186 + width:.1f}" y="{y + 15}">{value:.2f}</text>')
    bottom, one = 46 + len(ratios) * height, 180 + scale
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="560" height="{bottom + 10}" ',
            'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
            f'<text x="10" y="22">lib_mlx, times better than {escape(against)}</text>',
            *bars,
            f'<line x1="{one:.1f}" y1="36" x2="{one:.1f}" y2="{bottom}" stroke="#888" stroke-dasharray="4"/></svg>\n',
        ]
    )
