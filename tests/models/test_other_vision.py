"""Vision models of other families, with random weights: as mlx-vlm computes them, alone, in pieces and in a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

import lib_mlx
from lib_mlx.errors import CorruptModel, UnsupportedFeature
from lib_mlx.generation import Image, PixelBounds
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_tokenizer, load_weights
from lib_mlx.models.media_reader import MediaReader
from lib_mlx.models.vision_network import RowState
from tests.fixtures import GUI
from tests.models.other_vision import IMAGE, build
from tests.models.vision import greedy_tokens, request_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.models.vision_network import VisionNetwork

SHOTS = ("icon", "dialog")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a family's checkpoint."""
    root = tmp_path_factory.mktemp("others")
    return lambda name: root / name if (root / name).exists() else build(root / name, name)


def load(path: Path) -> VisionNetwork:
    vision = load_weights(inspect(path), lambda _: None, lambda: False).vision
    assert vision is not None
    return vision


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
@pytest.mark.parametrize("step", [10_000, 7])
def test_logits_are_those_of_mlx_vlm(checkpoint: Callable[[str], Path], family: str, step: int) -> None:
    """Of a prompt with two images, at once and in chunks that end inside an image; also as rows to learn from."""
    path = checkpoint(family)
    vision, inspected = load(path), inspect(path)
    reader = MediaReader(inspected, load_tokenizer(inspected), {"image": IMAGE}, PixelBounds(most=1 << 16))
    images = [Image((GUI / f"screenshots/{name}.png").read_bytes()) for name in SHOTS]
    pictures = reader.read(request_of(*images))
    numbers, media, _ = reader.place([5, IMAGE, 6, 7, IMAGE, 8, 9], pictures, ())
    made = [reader.inputs(picture) for picture in pictures]
    plan = vision.plan(media)
    plan.features |= {
        picture.digest: vision.encode("image", picture.shape.tokens, inputs)
        for picture, inputs in zip(pictures, made, strict=True)
    }
    cache = [*vision.make_cache(), RowState.new(plan)]
    prompt = mx.array([numbers])
    ours = mx.concatenate([vision(prompt[:, at : at + step], cache) for at in range(0, len(numbers), step)], axis=1)

    together: Any = {name: mx.concatenate([mx.array(inputs[name]) for inputs in made]) for name in made[0]}
    theirs: Any = vision.whole.get_input_embeddings(mx.array([media.tokens]), **together)
    options = {name: value for name, value in theirs.to_dict().items() if value is not None}
    expected = vision.language(mx.array([media.tokens]), cache=vision.make_cache(), **options).logits
    assert np.abs(np.array(ours - expected)).max() < 1e-4
    scored = vision.score(mx.array([[0] * len(numbers), numbers]), [None, plan])[1:]
    assert np.abs(np.array(scored - expected)).max() < 1e-4


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_answers_do_not_depend_on_neighbours(checkpoint: Callable[[str], Path], family: str) -> None:
    """Through the whole engine: with an image, with two and without, alone and together."""
    pictures = [Image((GUI / f"screenshots/{name}.png").read_bytes()) for name in SHOTS]
    contents: list[tuple[str | Image, ...]] = [(pictures[0], "a"), ("b",), (pictures[1], "c", pictures[0])]
    with lib_mlx.load_model(checkpoint(family), prefix_cache_bytes=0, max_pixels=1 << 16) as model:
        alone = [greedy_tokens(model, parts)[0] for parts in contents]
        assert greedy_tokens(model, *contents) == alone


def test_networks_that_want_more_than_features(checkpoint: Callable[[str], Path]) -> None:
    """They are refused by what they want."""
    vision = load(checkpoint("gemma3"))
    with pytest.raises(UnsupportedFeature, match="attention_mask_4d"):
        vision.encode("image", [IMAGE] * 4, {"pixel_values": np.zeros((1, 3, 56, 56), np.float32)})


def test_a_processor_of_text_alone(checkpoint: Callable[[str], Path]) -> None:
    """A checkpoint whose processor upstream takes for a tokenizer is damaged, and says so."""
    inspected = inspect(checkpoint("gemma3"))
    reader = MediaReader(inspected, load_tokenizer(inspected), {"image": IMAGE}, PixelBounds())
    with pytest.raises(CorruptModel, match="for text alone"):
        reader.read(request_of(Image((GUI / "screenshots/icon.png").read_bytes())))
