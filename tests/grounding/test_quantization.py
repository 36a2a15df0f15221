"""A quantised language model still points at the target; head and vision tower are untouched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from lib_mlx.errors import InvalidArgument
from lib_mlx.grounding.quantization import quantize_checkpoint
from tests.grounding.conftest import FIXTURES, TRAINED, cases, load_actor, loaded, outcome

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = FIXTURES / "models" / TRAINED


@pytest.mark.parametrize("bits", [4, 8])
def test_points(tmp_path: Path, bits: Literal[4, 8]) -> None:
    """With 4 and 8 bits every case's click lies in its target; the tower's weights are equal."""
    known = load_actor(quantize_checkpoint(SOURCE, tmp_path / "small", bits), "quantized")
    for case in cases(TRAINED).values():
        found = outcome(known.actor.ground(*known.case(case)))
        (x, y), (left, top, right, bottom) = found.pixel(found.point), case["target_box"]
        assert left <= x <= right, case["name"]
        assert top <= y <= bottom, case["name"]
    towers = [dict(tree_flatten(model.network.whole.vision_tower.parameters())) for model in (known, loaded(TRAINED))]
    assert all(mx.array_equal(towers[0][name], value) for name, value in towers[1].items())
    assert towers[0].keys() == towers[1].keys()
    assert known.network.layers[0].mlp.gate_proj.bits == bits


def test_what_is_refused(tmp_path: Path) -> None:
    """Neither another model nor one that is quantised is taken, nor is anything overwritten."""
    with pytest.raises(InvalidArgument, match="no GUI-Actor"):
        quantize_checkpoint(FIXTURES / "models/tiny-qwen2-vl", tmp_path / "a", 4)
    small = quantize_checkpoint(SOURCE, tmp_path / "b", 4)
    with pytest.raises(InvalidArgument, match="quantised already"):
        quantize_checkpoint(small, tmp_path / "c", 4)
    with pytest.raises(InvalidArgument, match="exists"):
        quantize_checkpoint(SOURCE, small, 8)
