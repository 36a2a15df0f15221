"""The status call's time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.status_time import BASELINE, measure

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("library")
def test_a_status_takes_microseconds(crafted: Path) -> None:
    """Also during a load or a prefill, and while somebody holds Python's lock; a call through Python takes longer."""
    rows = measure(crafted)
    assert set(rows) == {"during a load", "idle", BASELINE, "Python's lock held", "during a prefill"}
    assert all(calls > 10 for calls, *_ in rows.values())
    baseline = rows.pop(BASELINE)[1]
    assert max(median for _, median, *_ in rows.values()) < min(50, baseline)
