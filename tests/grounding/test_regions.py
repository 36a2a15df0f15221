"""Attention maps to regions: the reference's, on maps that need no model."""

from __future__ import annotations

import json

import pytest

from lib_mlx.grounding.regions import THRESHOLD, find_regions
from tests.grounding.conftest import FIXTURES

MAPS = json.loads((FIXTURES / "expected/regions.json").read_text())


@pytest.mark.parametrize("known", [m for m in MAPS if not m["options"].get("rect_center")], ids=lambda m: m["name"])
def test_regions(known: dict) -> None:  # type: ignore[type-arg]
    """Scores, weighted centres, patches and ranks are the reference's."""
    options = known["options"]
    found = find_regions(
        known["scores"],
        known["n_width"],
        threshold=options.get("threshold", THRESHOLD),
        most=options.get("top_n"),
    )
    assert [list(region.patches) for region in found] == [region["patches"] for region in known["regions"]]
    for region, expected in zip(found, known["regions"], strict=True):
        assert (region.x, region.y) == pytest.approx(expected["center"], abs=1e-9)
        assert region.score == pytest.approx(expected["score"], abs=1e-12)
