"""What a run's figures say: the table in docs/performance.md, the aims, and a picture."""

from __future__ import annotations

import html
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BEGIN, END = "<!-- compare: written by `python -m benchmarks.compare --write-docs` -->", "<!-- compare: end -->"
Results = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One row. `aim`: the peer ("mlx": the better of the MLX servers) and by what factor lib_mlx should be better."""

    key: str
    title: str
    digits: int = 1
    more_is_better: bool = False
    aim: tuple[str, float] | None = None


FIGURES = (
    Figure("ready_s", "start to ready, s", 2),
    Figure("first_token_s", "start to first token, s", 2),
    Figure("prefill_tokens_s", "prefill, tokens/s", 0, True, ("mlx_lm.server", 15)),
    Figure("decode_1_tokens_s", "decode, 1 stream, tokens/s", 1, True, ("mlx_lm.server", 3)),
    Figure("decode_4_tokens_s", "decode, 4 streams, tokens/s", 1, True),
    Figure("decode_8_tokens_s", "decode, 8 streams, tokens/s", 1, True, ("mlx_lm.server", 4)),
    Figure("decode_32_tokens_s", "decode, 32 streams, tokens/s", 1, True),
    Figure("cached_wait_s", "first token on a cached prefix, s", 3),
    Figure("stall_p99_s", "pause under a long prefill, p99, s", 2, aim=("mlx_lm.server", 3)),
    Figure("stall_max_s", "pause under a long prefill, longest, s", 2),
    Figure("cpu_1_ms", "CPU per token, 1 stream, ms", 0),
    Figure("cpu_4_ms", "CPU per token, 4 streams, ms", 0, aim=("llama-server", 1 / 1.5)),
    Figure("cpu_32_ms", "CPU per token, 32 streams, ms", 0),
    Figure("overhead_ms", "overhead per token, 32 streams, CPU ms", 2, aim=("mlx", 2)),
    Figure("memory_mb", "memory, MB", 0),
    Figure("memory_peak_mb", "memory, peak, MB", 0),
    Figure("recovery_s", "idle after a client left, s", 2),
)


def medians(results: Results) -> dict[str, dict[str, float]]:
    """Return the median of each figure of each server."""
    found: dict[str, dict[str, float]] = {}
    for peer, runs in results["runs"].items():
        keys = {key for run in runs for key in run}
        found[peer] = {key: statistics.median(run[key] for run in runs if key in run) for key in keys}
    return found


def ratio(figure: Figure, values: Mapping[str, Mapping[str, float]]) -> float | None:
    """Return how many times better lib_mlx is than the peer of the figure's aim; None if one was not measured."""
    if figure.aim is None:
        return None
    peer, _ = figure.aim
    names = [name for name in values if name.startswith("mlx_")] if peer == "mlx" else [peer]
    theirs = [values[name][figure.key] for name in names if figure.key in values.get(name, {})]
    ours = values.get("lib_mlx", {}).get(figure.key)
    if not theirs or not ours:
        return None
    return ours / max(theirs) if figure.more_is_better else min(theirs) / ours


def table(results: Results) -> str:
    """Return the figures as a table in Markdown, with the aims beside them."""
    values = medians(results)
    names = list(values)
    lines = [f"| | {' | '.join(names)} | times better: aim, found |", "|---" * (len(names) + 2) + "|"]
    for figure in FIGURES:
        cells = [
            f"{values[name][figure.key]:.{figure.digits}f}" if figure.key in values[name] else "" for name in names
        ]
        aim = ""
        if figure.aim is not None:
            peer, factor = figure.aim
            found = ratio(figure, values)
            shown = "not measured" if found is None else f"{found:.1f}{'' if found >= factor else ' (missed)'}"
            aim = f"{'the better MLX server' if peer == 'mlx' else peer}: {factor:.2g}, {shown}"
        lines.append(f"| {figure.title} | {' | '.join(cells)} | {aim} |")
    lines += ["", f"{results['date']}; {results['machine']}; {results['model']}; median of {results['count']} runs."]
    return "\n".join(lines + [f"Not measured: {name}: {why}." for name, why in results["missing"].items()])


def in_docs(text: str, results: Results) -> str:
    """Return the document `text` with the table between its two markers replaced.

    Raises:
        ValueError: it has no such markers.
    """
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError("the document has no markers")
    return f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}"


_COLOURS = ("#d9480f", "#1971c2", "#2f9e44", "#862e9c", "#495057")
_BAR, _GAP, _WIDTH, _LEFT, _RIGHT = 12, 26, 760, 250, 70


def draw(results: Results, path: Path) -> None:
    """Write the figures as bars to an SVG file, each row to its own scale."""
    values = medians(results)
    names = list(values)
    rows, y = [], 34
    for number, name in enumerate(names):
        x = _LEFT + 130 * number
        rows.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{_COLOURS[number % len(_COLOURS)]}"/>')
        rows.append(f'<text x="{x + 14}" y="17">{html.escape(name)}</text>')
    for figure in FIGURES:
        largest = max((value.get(figure.key, 0) for value in values.values()), default=0)
        if not largest:
            continue
        arrow = "higher is better" if figure.more_is_better else "lower is better"
        rows.append(f'<text x="8" y="{y + 10}">{html.escape(figure.title)}</text>')
        rows.append(f'<text x="8" y="{y + 22}" fill="#868e96">{arrow}</text>')
        for number, name in enumerate(names):
            value = values[name].get(figure.key)
            if value is not None:
                width = max(1, round((_WIDTH - _LEFT - _RIGHT) * value / largest))
                colour = _COLOURS[number % len(_COLOURS)]
                rows.append(f'<rect x="{_LEFT}" y="{y}" width="{width}" height="{_BAR - 2}" fill="{colour}"/>')
                rows.append(f'<text x="{_LEFT + width + 4}" y="{y + 9}">{value:.{figure.digits}f}</text>')
            y += _BAR
        y += _GAP - _BAR
    size = f'width="{_WIDTH}" height="{y}" font-family="sans-serif" font-size="10"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    path.write_text("\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *rows, "</svg>\n"]))
