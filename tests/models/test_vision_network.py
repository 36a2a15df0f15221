"""mlx-vlm's networks behind ours, against a PyTorch reference: alone, in pieces, and in a batch with text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest

from lib_mlx.engine.serial import SerialGenerator
from lib_mlx.models.upstream import BatchGenerator, StopSequences, greedy_sampler
from lib_mlx.models.vision_network import RowState
from tests.models.vision import POINTERS, TOLERANCE, encode, network, plain_case, pointer_case

if TYPE_CHECKING:
    from tests.models.vision import Reference

CASES = ("dialog", "settings", "toolbar", "phone", "icon", "desktop", "twins")


def logits(reference: Reference, step: int = 10_000) -> mx.array:
    """All logits of a case's prompt, processed `step` tokens at a time."""
    vision = network(reference.model)
    cache = [*vision.make_cache(), RowState.new(encode(reference))]
    tokens = mx.array([reference.tokens])
    parts = [vision(tokens[:, at : at + step], cache) for at in range(0, tokens.shape[1], step)]
    return mx.concatenate(parts, axis=1)[0]


@pytest.mark.parametrize("name", ["one", "two", "none"])
@pytest.mark.parametrize("step", [10_000, 7])
def test_logits_are_those_of_the_reference(name: str, step: int) -> None:
    """With one image, two and none, at once and in chunks that end inside an image."""
    reference = plain_case(name)
    rows = mx.array(reference.tensors["logits_rows"])
    got = np.array(logits(reference, step)[rows])
    assert np.abs(got - reference.tensors["logits"]).max() < TOLERANCE


def test_whole_rows_to_learn_from() -> None:
    """Without caches, padded to the longest, each row has the reference's logits."""
    references = [plain_case(name) for name in ("one", "none", "two")]
    length = max(len(reference.tokens) for reference in references)
    tokens = [[*reference.tokens, *[0] * (length - len(reference.tokens))] for reference in references]
    plans = [encode(reference) if reference.images else None for reference in references]
    scored = np.array(network(references[0].model).score(mx.array(tokens), plans))
    for reference, got in zip(references, scored, strict=True):
        assert np.abs(got[reference.tensors["logits_rows"]] - reference.tensors["logits"]).max() < TOLERANCE


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("model", POINTERS)
def test_backbones_of_pointer_models(model: str, name: str) -> None:
    """Features, places and the last logits of Qwen2-VL and Qwen2.5-VL agree for every screenshot."""
    reference = pointer_case(model, name)
    plan = encode(reference)
    assert np.abs(np.array(plan.features["0"]) - reference.tensors["visual_embeds"]).max() < TOLERANCE
    assert plan.positions is not None
    assert (plan.positions == reference.tensors["position_ids"]).all()
    assert plan.delta == reference.facts["rope_delta"]
    last = np.array(logits(reference)[-1])
    assert np.abs(last - reference.tensors["last_logits"][0]).max() < TOLERANCE


def test_a_batch_of_images_and_text() -> None:
    """Rows that begin at different times, in chunks of five tokens, each make the reference's tokens."""
    references = [plain_case(name) for name in ("one", "none", "two", "none", "one")]
    vision = network(references[0].model)
    batch = BatchGenerator(vision, prefill_step_size=5, stream=mx.default_stream(mx.default_device()))
    made: dict[int, list[int]] = {}

    def step() -> bool:
        prompts, tokens = batch.next()
        for row in tokens:
            made[row.uid].append(row.token)
        return bool(prompts or tokens)

    for reference in references:
        (uid,) = batch.insert(
            [reference.tokens],
            max_tokens=[10],
            caches=[[*vision.make_cache(), RowState.new(encode(reference))]],
            stop_sequences=[StopSequences()],
        )
        made[uid] = []
        for _ in range(3):
            step()
    while step():
        pass
    assert [*made.values()] == [reference.facts["new_tokens"] for reference in references]


def test_rows_that_decode_in_turns() -> None:
    """Where rows cannot be merged, images are read too."""
    references = [plain_case(name) for name in ("one", "none", "two")]
    vision = network(references[0].model)
    batch = SerialGenerator(vision)
    batch.prefill_step_size = 50
    made: dict[int, list[int]] = {}
    for reference in references:
        (uid,) = batch.insert_segments(
            [[reference.tokens]],
            max_tokens=[10],
            caches=[[*vision.make_cache(), RowState.new(encode(reference))]],
            all_tokens=[[]],
            samplers=[greedy_sampler],
            logits_processors=[[]],
            stop_sequences=[StopSequences()],
        )
        made[uid] = []
    while min(map(len, made.values())) < 10:
        for row in batch.next()[1]:
            made[row.uid].append(row.token)
    assert [*made.values()] == [reference.facts["new_tokens"] for reference in references]


def test_an_image_leaves_nothing_behind() -> None:
    """Text that follows a prompt with images has the logits that it has alone (mlx-vlm's own call is off by 9.8)."""
    logits(plain_case("two"))
    reference = plain_case("none")
    rows = mx.array(reference.tensors["logits_rows"])
    assert np.abs(np.array(logits(reference)[rows]) - reference.tensors["logits"]).max() < TOLERANCE
