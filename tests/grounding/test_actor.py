"""Parity with PyTorch: from a picture and an instruction to points, on real inference with the tiny checkpoints.

This is the contract with mlx-vlm's internals, too.
"""

from __future__ import annotations

import hashlib

import mlx.core as mx
import numpy as np
import pytest

from lib_mlx.errors import CorruptModel, TargetNotFound
from lib_mlx.generation import PixelBounds
from lib_mlx.grounding.actor import CHUNK
from tests.grounding.conftest import MODELS, TRAINED, cases, loaded, outcome, picture, tensors

CASES = [(model, case) for model in MODELS for case in cases(model)]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_what_enters_the_model(model: str, name: str) -> None:
    """Token ids and grids are PyTorch's exactly, pixels and the tower's output nearly."""
    known, case = loaded(model), cases(model)[name]
    (prompt, features), expected = known.case(case), tensors(model, name)
    assert prompt.tokens == expected["input_ids"].tolist()
    assert [list(prompt.screenshot.grid)] == case["image_grid_thw"]
    assert (prompt.screenshot.columns, prompt.screenshot.rows) == (case["n_width"], case["n_height"])
    embedded = known.backbone.embed(prompt.tokens, features, prompt.screenshot.grid)
    assert embedded.delta == case["rope_delta"]
    assert np.array_equal(np.array(embedded.positions)[:, 0], expected["position_ids"])
    image = np.array(prompt.tokens) == known.interface.image
    assert np.abs(np.array(embedded.values[0])[image] - expected["visual_embeds"]).max() < 1e-4
    assert np.abs(np.array(features) - expected["visual_embeds"]).max() < 1e-4
    entering = known.picture(picture(case), PixelBounds(case["min_pixels"], case["max_pixels"]))
    assert hashlib.sha256(entering.pixels.tobytes()).hexdigest() == case["resized_rgb_sha256"]
    if "pixel_values" in expected:
        assert np.abs(known.reader.inputs(entering)["pixel_values"] - expected["pixel_values"]).max() < 1e-5


@pytest.mark.parametrize(("model", "name"), CASES)
def test_attention_and_points(model: str, name: str) -> None:
    """Both are PyTorch's to 1e-5; the trained model's click lies in the target."""
    known, case = loaded(model), cases(model)[name]
    found = outcome(known.actor.ground(*known.case(case)))
    (pointer,) = found.pointers
    assert np.abs(np.array(pointer.attention) - tensors(model, name)["attn_scores"][0]).max() < 1e-5
    points = [(point.x, point.y) for point in pointer.points[:5]]
    assert len(pointer.points) == case["n_regions"]
    assert np.abs(np.array(points) - case["topk_points"]).max() < 1e-5
    assert np.abs(np.array([point.score for point in pointer.points[:5]]) - case["topk_values"]).max() < 1e-5
    x, y = found.pixel(found.point)
    assert found.text == f"pyautogui.click({x}, {y})"
    left, top, right, bottom = case["target_box"]
    assert (left <= x <= right and top <= y <= bottom) == case["top1_in_target"]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_hidden_states_and_logits(model: str, name: str) -> None:
    """The head's query, its scores and the language model's logits are PyTorch's to 1e-4."""
    known, case, expected = loaded(model), cases(model)[name], tensors(model, name)
    prompt, features = known.case(case)
    embedded = known.backbone.embed(prompt.tokens, features, prompt.screenshot.grid)
    states = known.backbone.states(embedded, 0, len(prompt.tokens), known.backbone.new_cache())
    query = states[prompt.tokens.index(known.interface.pad)][None]
    assert np.abs(np.array(query) - expected["pointer_hidden"]).max() < 1e-4
    assert np.abs(np.array(known.backbone.logits(states[-1:])) - expected["last_logits"]).max() < 1e-4
    logits = known.head.logits(mx.array(expected["visual_embeds"]), query)
    assert np.abs(np.array(logits) - expected["pointer_logits"]).max() < 1e-4
    if "hidden" in expected:
        assert np.abs(np.array(states) - expected["hidden"]).max() < 1e-4


@pytest.mark.parametrize("name", cases(TRAINED))
def test_its_own_answer(name: str) -> None:
    """Left to itself, the model makes PyTorch's tokens and points at the same place."""
    known, case = loaded(TRAINED), cases(TRAINED)[name]
    asked = known.case(case, max_tokens=24)
    made, _ = outcome(known.actor.attend(*asked))
    assert made == case["free"]["new_tokens"]
    found = outcome(known.actor.ground(*asked))
    assert np.abs(np.array([found.point.x, found.point.y]) - case["free"]["point"]).max() < 1e-5
    x, y = found.pixel(found.point)
    assert found.text == f"pyautogui.click({x}, {y})"


@pytest.mark.parametrize("name", ["icon", "phone"])
def test_an_answer_without_a_pointer(name: str) -> None:
    """It is an error that tells what the model said."""
    known = loaded(MODELS[1])
    case = cases(MODELS[1])[name]
    with pytest.raises(TargetNotFound, match="pointed at nothing"):
        outcome(known.actor.ground(*known.case(case, max_tokens=24)))


def test_all_pointers_of_a_drag() -> None:
    """A prompt with two pointers gives two, in order, each with a map of its own."""
    known, case = loaded(TRAINED), cases(TRAINED)["twins"]
    prompt, features = known.case(case)
    at = prompt.tokens.index(known.interface.pad)
    prompt.tokens[at + 2 : at + 2] = [known.interface.pad, known.interface.end]
    first, second = outcome(known.actor.ground(prompt, features)).pointers
    assert first.points[0].x == pytest.approx(case["topk_points"][0][0], abs=1e-5)
    assert sum(second.attention) == pytest.approx(1, abs=1e-5)
    assert first.attention != second.attention


def test_it_works_in_pieces() -> None:
    """Between two chunks of a prompt, and two tokens, others have their turn; pictures in turns do not mix."""
    known = loaded(TRAINED)
    asked = [known.case(cases(TRAINED)[name], max_tokens=24) for name in ("settings", "phone")]
    assert len(asked[0][0].tokens) > CHUNK
    running = [known.actor.ground(*one) for one in asked]
    steps, found = [0, 0], {}
    while len(found) < 2:
        for index, steps_of in enumerate(running):
            if index not in found:
                try:
                    next(steps_of)
                    steps[index] += 1
                except StopIteration as end:
                    found[index] = end.value
    assert min(steps) > 12
    for index, name in enumerate(("settings", "phone")):
        assert found[index].point.x == pytest.approx(cases(TRAINED)[name]["free"]["point"][0], abs=1e-5)


def test_weights_that_give_no_numbers() -> None:
    """They are an error, not a point."""
    known = loaded(TRAINED)
    prompt, features = known.case(cases(TRAINED)["icon"])
    with pytest.raises(CorruptModel, match="not a number"):
        outcome(known.actor.ground(prompt, features * mx.nan))
