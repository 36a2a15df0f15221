"""The chunk of prompt per step follows the speed that is measured."""

from __future__ import annotations

import pytest

from lib_mlx.engine.prefill_pace import PrefillPace


def run(pace: PrefillPace, rate: float, decode_s: float, *, rows: int) -> float:
    """Let a machine work that processes `rate` prompt tokens per second; return how long its last step takes."""
    seconds = 0.0
    for _ in range(60):
        chunk = pace.chunk(rows=rows)
        seconds = chunk / rate + (decode_s if rows else 0.0)
        pace.stepped(seconds, chunk, rows=rows)
    return seconds


@pytest.mark.parametrize("first_guess", [1.0, 256.0, 1e6])
@pytest.mark.parametrize("rate", [170.0, 3000.0])
def test_it_settles(first_guess: float, rate: float) -> None:
    """Whatever was guessed, steps come to take half a second, and a fifth where streams decode."""
    pace = PrefillPace(first_guess)
    assert run(pace, rate, 0.0, rows=0) == pytest.approx(0.5, rel=0.05)
    assert pace.rate == pytest.approx(rate, rel=0.05)
    for _ in range(30):
        pace.stepped(0.04, 0, rows=1)
    assert run(pace, rate, 0.04, rows=1) == pytest.approx(0.24, rel=0.15)


def test_slow_streams_get_as_much_as_they_take() -> None:
    """Where a step of the streams alone takes long, prompts get as long again, and are not starved."""
    pace = PrefillPace(100.0)
    for _ in range(30):
        pace.stepped(0.8, 0, rows=1)
    assert run(pace, 100.0, 0.8, rows=1) == pytest.approx(1.6, rel=0.1)


def test_the_bounds() -> None:
    """A chunk is worth the trouble and never endless."""
    assert PrefillPace(0.001).chunk(rows=1) == 16
    assert PrefillPace(1e9).chunk(rows=0) == 2048
