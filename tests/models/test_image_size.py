"""Sizes of images against those of the reference implementation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import PixelBounds
from lib_mlx.models.image_size import FACTOR, fetch_resize, smart_resize
from tests.fixtures import GUI

CASES: list[dict[str, Any]] = json.loads((GUI / "expected/smart_resize.json").read_text())
RESIZE = {"processor": smart_resize, "fetch": fetch_resize}


@pytest.mark.parametrize("stage", RESIZE)
def test_sizes_are_those_of_the_reference(stage: str) -> None:
    """Every size, bound and error of the fixture comes out the same."""
    cases = [case for case in CASES if case["stage"] == stage]
    assert len(cases) > 10
    for case in cases:
        bounds = {key: case[key] for key in ("min_pixels", "max_pixels")}
        if case["resized"] is None:
            with pytest.raises(InvalidArgument, match="200 times"):
                RESIZE[stage](case["height"], case["width"], **bounds)
        else:
            got = RESIZE[stage](case["height"], case["width"], **bounds)
            assert [*got] == case["resized"], case
            assert not any(side % FACTOR for side in got)


def test_bounds_fill_each_other() -> None:
    """A request's bounds go before a model's, one by one."""
    assert PixelBounds(most=9).over(PixelBounds(1, 2)) == PixelBounds(1, 9)
