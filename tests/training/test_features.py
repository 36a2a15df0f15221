"""Images while a model learns of them: encoded once, within a bound, and to the same end whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from safetensors.numpy import load_file

from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import PixelBounds
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_network, load_tokenizer
from lib_mlx.models.media_reader import MediaReader
from lib_mlx.models.upstream_vlm import import_mlx_vlm
from lib_mlx.training.examples import Example, read_examples
from lib_mlx.training.features import Features
from lib_mlx.training.trainer import train
from tests.models.vision import PLAIN
from tests.training.colours import png, rows, told
from tests.training.conftest import train_until_killed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.training.config import TrainConfig
    from lib_mlx.training.trainer import Progress


@pytest.fixture
def mixed(tmp_path: Path) -> list[dict[str, Any]]:
    """Rows with images, and some without."""
    return [*rows(tmp_path), *({"prompt": f"Click {number}", "completion": "no"} for number in range(8))]


@pytest.fixture
def config(tmp_path: Path, mixed: list[dict[str, Any]]) -> Callable[..., TrainConfig]:
    """Return a function that makes a configuration, with something random in all of them."""

    def make(name: str, **values: Any) -> TrainConfig:
        base = {"dropout": 0.2, "schedule": "linear", "batch_size": 4, "steps": 12, "validation_share": 0.2}
        return told(tmp_path, name, PLAIN, mixed, **{**base, "validate_every": 5, **values})

    return make


def same(one: Path, other: Path) -> bool:
    """Whether two trainings have come to the same bits."""
    for name in ("adapters.safetensors", "checkpoint.safetensors"):
        ours, theirs = load_file(one / name), load_file(other / name)
        if ours.keys() != theirs.keys() or not all((ours[key] == theirs[key]).all() for key in ours):
            return False
    losses = [[row.split(",")[1] for row in (path / "loss.csv").read_text().splitlines()] for path in (one, other)]
    return losses[0] == losses[1]


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_going_on_is_the_same_as_never_stopping(config: Callable[..., TrainConfig], method: str) -> None:
    """Interrupted, with accumulation, and with no room for a single feature: the same bits in the end."""
    given: dict[str, Any] = {"method": method, "accumulation": 2, "layers": 1}
    whole = train(config("whole", **given))
    seen: list[Progress] = []
    again = config("parts", **given, save_every=3, image_cache_bytes=0)
    first = train(again, seen.append, lambda: len(seen) == 5)
    assert (first.ended, first.step) == ("interrupted", 5)
    second = train(again)
    assert (second.ended, second.step) == ("done", 12)
    assert same(whole.path, second.path)
    assert whole.best_validation_loss == second.best_validation_loss


def test_going_on_after_a_kill(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """What a killed process wrote last is gone on with, to the same end."""
    given = config("killed", steps=40, save_every=4)
    train_until_killed(given, 10)
    seen: list[Progress] = []
    killed = train(given, seen.append)
    assert 4 < seen[0].step <= 40
    assert same(killed.path, train(config("whole", steps=40, save_every=4)).path)


def test_only_the_language_part_is_trained(config: Callable[..., TrainConfig]) -> None:
    """Of all methods: what is written has nothing of the encoders, and all of the language model if that is meant."""
    names = {
        method: set(load_file(train(config(method, method=method, steps=1)).path / "adapters.safetensors"))
        for method in ("lora", "dora", "full")
    }
    assert all(name.startswith("language_model.") for found in names.values() for name in found)
    assert {name.rpartition(".")[2] for name in names["lora"]} == {"lora_a", "lora_b"}
    assert {name.rpartition(".")[2] for name in names["dora"]} == {"lora_a", "lora_b", "m"}
    assert "language_model.model.embed_tokens.weight" in names["full"]
    stored = {name for name in load_file(PLAIN / "model.safetensors") if not name.startswith("visual.")}
    assert len(names["full"]) == len(stored)


def test_layers_computed_again(config: Callable[..., TrainConfig]) -> None:
    """With `checkpoint_layers` the losses are the same."""
    plain, again = (
        train(config(name, steps=3, dropout=0.0, checkpoint_layers=name == "again")) for name in ("plain", "again")
    )
    assert abs(plain.loss - again.loss) < 1e-5


@pytest.fixture
def features(tmp_path: Path) -> Callable[..., tuple[Features, list[Example]]]:
    """Return a function that gives the features of 24 images, of which 12 have 4 tokens and others 6, and examples."""

    def make(max_bytes: int | None, bounds: PixelBounds = PixelBounds()) -> tuple[Features, list[Example]]:  # noqa: B008 - immutable
        checkpoint = inspect(PLAIN)
        import_mlx_vlm(checkpoint)
        vision = get_worker().run(load_network, checkpoint)[1]
        assert vision is not None
        tokenizer = load_tokenizer(checkpoint)
        reader = MediaReader(checkpoint, tokenizer, {"image": vision.placeholders["image"]}, bounds)
        examples = read_examples(told(tmp_path, "x", PLAIN, rows(tmp_path)), tokenizer, 0, reader).train
        return Features(vision, reader, max_bytes), examples

    return make


def test_images_are_encoded_once(features: Callable[..., tuple[Features, list[Example]]]) -> None:
    """In the second round nothing is encoded; with room for two, those come from there, and none is too much."""
    kept, examples = features(None)
    for _ in range(3):
        for at in range(0, 24, 4):
            plans = kept.plans(examples[at : at + 4])
            assert all(plan is not None and not plan.missing(0) for plan in plans)
    assert kept.encoded == 24
    few, examples = features(2 * 6 * 64 * 4)
    few.plans(examples[:4] * 2)
    assert few.encoded == 4
    assert few.nbytes <= 2 * 6 * 64 * 4
    few.plans(examples[:4])
    assert few.encoded > 4


def test_bounds_of_pixels(features: Callable[..., tuple[Features, list[Example]]]) -> None:
    """An image has as many tokens as the bounds leave it."""
    _, examples = features(0, PixelBounds(most=4 * 28 * 28))
    assert {example.tokens.count(-1) for example in examples} == {2, 4}
    _, examples = features(0, PixelBounds(least=16 * 28 * 28))
    assert all(example.tokens.count(-1) >= 16 for example in examples)


def test_an_image_that_was_exchanged(features: Callable[..., tuple[Features, list[Example]]], tmp_path: Path) -> None:
    """Another image in the place of one that was read is told, and not learnt from."""
    found, examples = features(None)
    assert examples[0].line is not None
    (tmp_path / "red0.png").write_bytes(png("blue", (84, 84)))
    with pytest.raises(InvalidArgument, match=r"x.jsonl:1: an image has changed"):
        found.plans(examples[:1])
