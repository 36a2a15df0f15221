"""The verifier's picture, question and choice, without a model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lib_mlx.grounding.result import Point
from lib_mlx.grounding.verifier import ENOUGH, choose, circled, probability, question
from tests.grounding.conftest import FIXTURES, picture

KNOWN = json.loads((FIXTURES / "expected/tiny-qwen2-vl.json").read_text())["verifier"]


@pytest.mark.parametrize("known", KNOWN)
def test_the_picture_and_the_question(known: dict) -> None:  # type: ignore[type-arg]
    """Circle and crop are the published pipeline's, pixel for pixel; the words too."""
    drawn = circled(picture({"file": known["source"]}), *known["point"])
    assert np.array_equal(np.array(drawn), np.array(picture(known)))
    assert question("Press the blue button") in known["prompt"]


def test_a_crop() -> None:
    """Of a large picture only what is around the point is shown."""
    from PIL import Image

    drawn = circled(Image.new("RGB", (3000, 2000)), 0.5, 0.1)
    assert drawn.size == (1000, 700)


@pytest.mark.parametrize("known", KNOWN)
def test_the_probability(known: dict) -> None:  # type: ignore[type-arg]
    """It is that of True among True and False."""
    assert probability(math.log(known["p_true"]), math.log(known["p_false"])) == pytest.approx(known["score"])
    assert probability(-1e9, 0) == pytest.approx(0)
    assert probability(1e9, 0) == 1


def test_the_choice() -> None:
    """The likeliest goes first; one that is nearly certain ends the search."""
    points = tuple(Point(at / 10, 0.5, 1 - at / 10) for at in range(4))
    told = dict(zip((point.x for point in points), (0.2, 0.9, 0.4, 0.3), strict=True))
    ranked = choose(points, lambda point: told[point.x])
    assert [point.x for point in ranked] == [0.1, 0.0, 0.2, 0.3]
    assert [point.verified for point in ranked] == [0.9, 0.2, 0.4, 0.3]
    told[0.1] = ENOUGH + 0.01
    ranked = choose(points, lambda point: told[point.x])
    assert [(point.x, point.verified) for point in ranked[1:]] == [(0.0, 0.2), (0.2, None), (0.3, None)]
