"""Vision models: what was learnt of images is said over HTTP, fused, exchanged, and known to mlx-vlm."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import mlx.core as mx
import numpy as np
import openai
import pytest
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten
from mlx_vlm.trainer import get_peft_model, load_adapters
from mlx_vlm.trainer.common.utils import save_trainable_weights
from mlx_vlm.trainer.losses.cross_entropy import cross_entropy

import lib_mlx
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import CorruptModel, UnsupportedFeature
from lib_mlx.generation import Image, Message, PixelBounds, SamplingParams
from lib_mlx.models.adapters import load_adapter, swap_adapter
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_network, load_tokenizer, load_weights
from lib_mlx.models.media_reader import MediaReader
from lib_mlx.models.upstream_vlm import import_mlx_vlm, load_processor
from lib_mlx.models.vision_network import image_placeholder
from lib_mlx.training.examples import read_examples
from lib_mlx.training.features import Features
from lib_mlx.training.fuse import fuse
from lib_mlx.training.network import Batch, TrainedNetwork
from lib_mlx.training.trainer import train
from tests.fixtures import GUI
from tests.models import other_vision
from tests.models.vision import PLAIN
from tests.training.colours import COLOURS, NAMES, OTHERS, QUESTION, png, rows, told, url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.training.config import TrainConfig

ACTOR = GUI / "models/tiny-gui-actor-qwen2vl"
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all is made."""
    return tmp_path_factory.mktemp("vision")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    """A model that knows colours, of weights that were trained and put in the place of random ones."""
    told_all = told(folder, "full", PLAIN, rows(folder), method="full", steps=60, learning_rate=2e-3, warmup=5)
    return fuse(str(PLAIN), train(told_all).path, folder / "base")


@pytest.fixture(scope="module")
def adapter(folder: Path, base: Path) -> Path:
    """An adapter that has learnt other names."""
    return train(
        told(folder, "lora", base, rows(folder, OTHERS), steps=60, learning_rate=2e-3, warmup=10, rank=16)
    ).path


@pytest.fixture
def model(base: Path, adapter: Path) -> Iterator[lib_mlx.Model]:
    """The base, which may be given the adapter."""
    with lib_mlx.load_model(base, adapters={"other": str(adapter)}) as loaded:
        yield loaded


def names(model: lib_mlx.Model) -> dict[str, str]:
    """What a model calls each colour."""
    asked = {name: [Message("user", parts=(Image(png(name, shift=2)), QUESTION))] for name in COLOURS}
    return {name: model.generate(turns, sampling=GREEDY, max_tokens=8).text for name, turns in asked.items()}


def test_what_was_learnt_is_said_over_http(model: lib_mlx.Model) -> None:
    """OpenAI's client sends images and gets the names that were learnt, or those of the adapter put in."""
    with model.start_server() as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="unused")
        address = f"{server.base_url}/v1/models/{server.model_id}/adapter"
        for adapter, expected in ((None, NAMES), ("other", OTHERS), (None, NAMES)):
            assert httpx2.post(address, json={"name": adapter}).json()["adapter"] == adapter
            for colour, name in expected.items():
                image = {"type": "image_url", "image_url": {"url": url(png(colour, (84, 84)))}}
                turns: Any = [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]
                answer = client.chat.completions.create(
                    model=server.model_id, messages=turns, temperature=0, max_tokens=8
                )
                assert answer.choices[0].message.content == name


def test_adapters_change_places(model: lib_mlx.Model, base: Path, adapter: Path) -> None:
    """From the start, put in, taken out and put in again: the names are those of whoever is in."""
    for name, expected in (("other", OTHERS), (None, NAMES), ("other", OTHERS), ("other", OTHERS), (None, NAMES)):
        model.set_adapter(name)
        assert names(model) == expected
    with lib_mlx.load_model(base, adapter_path=str(adapter)) as begun:
        assert names(begun) == OTHERS


def test_changes_among_requests(model: lib_mlx.Model) -> None:
    """While several ask about images that are still to be encoded, each answer is wholly of one or the other."""

    def ask(name: str, shift: int) -> str:
        turns = [Message("user", parts=(Image(png(name, (112, 84), shift)), QUESTION))]
        return model.generate(turns, sampling=GREEDY, max_tokens=8).text

    with ThreadPoolExecutor(4) as pool:
        answers = {(name, shift): pool.submit(ask, name, shift) for name in COLOURS for shift in range(4)}
        for at in range(6):
            model.set_adapter("other" if at % 2 == 0 else None)
    assert all(answer.result() in {NAMES[name], OTHERS[name]} for (name, _), answer in answers.items())
    assert names(model) == NAMES


def test_trained_while_it_serves(model: lib_mlx.Model, base: Path, tmp_path: Path) -> None:
    """Requests about images are answered between the steps of a training of the same model, which leaves it alone."""
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, told(tmp_path, "out", base, rows(tmp_path, OTHERS), steps=30, dropout=0.1))
        while not training.done():
            assert names(model) == NAMES
        assert training.result().step == 30
    alone = train(told(tmp_path, "alone", base, rows(tmp_path, OTHERS), steps=30, dropout=0.1))
    ours, theirs = ((run.path / "adapters.safetensors").read_bytes() for run in (alone, training.result()))
    assert ours == theirs


def test_taken_out_nothing_is_left(folder: Path, base: Path, adapter: Path, tmp_path: Path) -> None:
    """Logits are the base's again, bit for bit, also after an adapter that did not fit."""
    network: Any = load_weights(inspect(base), lambda _: None, lambda: False).network
    bad = shutil.copytree(adapter, tmp_path / "bad")
    shutil.copy(folder / "full/adapters.safetensors", bad)

    def logits() -> np.ndarray[Any, Any]:
        return np.array(network(mx.array([[5, 6, 7]]), cache=network.make_cache()))

    before = logits()
    swap_adapter(network, adapter)
    assert np.abs(logits() - before).max() > 0.01
    swap_adapter(network, None)
    assert (logits() == before).all()
    with pytest.raises(CorruptModel, match="no place for an adapter"):
        swap_adapter(network, bad)
    assert (logits() == before).all()


def test_adapters_of_a_quantised_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Where our own C computes with weights as they are stored, layers change places, too; fused they stay so."""
    small = shutil.copytree(base, tmp_path / "small")
    _, vision = load_network(inspect(base))
    assert vision is not None
    quantize(vision.language, 32, 8)
    mx.save_safetensors(str(small / "model.safetensors"), dict(tree_flatten(vision.whole.parameters())))
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 32, "bits": 8}}))
    with lib_mlx.load_model(small, adapters={"other": str(adapter)}, cpu_weights="quantized") as model:
        assert model.status().model.weights == "quantized"
        for name, expected in ((None, NAMES), ("other", OTHERS), (None, NAMES)):
            model.set_adapter(name)
            assert names(model) == expected
    with lib_mlx.load_model(fuse(str(small), adapter, tmp_path / "fused"), cpu_weights="quantized") as model:
        assert model.status().model.weights == "quantized"
        assert names(model) == OTHERS


def test_fused(folder: Path, base: Path, adapter: Path) -> None:
    """A model with the adapter in its weights says what model and adapter say, and has its encoders as they were."""
    path = fuse(str(base), adapter, folder / "fused")
    with lib_mlx.load_model(path) as model:
        assert names(model) == OTHERS
    before, after = encoders(PLAIN), encoders(path)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def encoders(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All but the language model's weights."""
    _, vision = load_network(inspect(path))
    assert vision is not None
    parameters: Any = tree_flatten(vision.whole.parameters())
    return {name: np.array(array) for name, array in [*parameters, *vision.apart.items()] if "language" not in name}


def test_a_gui_actor(folder: Path) -> None:
    """It is trained, and fused it points with the head that it had; while it serves its adapter stays."""
    learnt = train(told(folder, "actor", ACTOR, rows(folder), steps=2, rank=2)).path
    fused = fuse(str(ACTOR), learnt, folder / "fused-actor")
    before, after = encoders(ACTOR), encoders(fused)
    assert {name.partition(".")[0] for name in after} == {"vision_tower", "multi_patch_pointer_head"}
    assert all((before[name] == after[name]).all() for name in before)
    with lib_mlx.load_model(fused, adapters={"one": str(learnt)}) as model:
        shot = next(one for one in json.loads((GUI / "screenshots/cases.json").read_text()) if one["name"] == "dialog")
        point = model.ground(GUI / "screenshots/dialog.png", shot["instruction"]).pointers[0].points[0]
        left, top, right, bottom = shot["target_box"]
        assert left < point.x * shot["width"] < right
        assert top < point.y * shot["height"] < bottom
        with pytest.raises(UnsupportedFeature, match="keeps the adapter"):
            model.set_adapter("one")


# mlx-vlm

TURN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"


def test_the_loss_is_mlx_vlms(base: Path, tmp_path: Path) -> None:
    """Of each row, and of a batch of images of different sizes and text: what its model and loss say of its ids."""
    checkpoint = inspect(base)
    images = {name: png(name, size) for name, size in (("red", (56, 56)), ("blue", (140, 84)))}
    given: list[Any] = [
        {
            "images": [url(content)],
            "messages": [
                {"role": "user", "content": f"Is this {name}?"},
                {"role": "assistant", "content": f"It is {name}."},
            ],
        }
        for name, content in images.items()
    ]
    given.append({"prompt": "Click", "completion": "no"})
    config = told(tmp_path, "loss", base, given)
    processor = load_processor(checkpoint)

    def straight() -> list[tuple[float, int]]:
        network: Any = load_network(checkpoint)[1]
        found = []
        from lib_mlx.models.pictures import decode

        for name, content in images.items():
            prompt = TURN.format(f"Is this {name}?")
            picture = decode(content, "")
            made, begun = (
                {key: mx.array(value) for key, value in processor(text=[text], images=[picture]).items()}
                for text in (f"{prompt}It is {name}.<|im_end|>\n", prompt)
            )
            ids = made["input_ids"]
            logits = network.whole(ids[:, :-1], made["pixel_values"], image_grid_thw=made["image_grid_thw"]).logits
            learnt = mx.arange(1, ids.shape[1])[None] >= begun["input_ids"].shape[1]
            loss, figures = cross_entropy(logits, ids[:, 1:], learnt)
            found.append((float(loss.item()), int(figures["num_tokens"].item())))
        return found

    worker = get_worker()
    ours = losses(config)
    for (loss, count), (expected, tokens) in zip(ours[:2], worker.run(straight), strict=True):
        assert count == tokens
        assert abs(loss - expected) < 1e-4
    together, count = ours[-1]
    assert abs(together - sum(loss * tokens for loss, tokens in ours[:-1]) / count) < 1e-4


def losses(config: TrainConfig) -> list[tuple[float, int]]:
    """The loss of each row, and last of all together, with their numbers of tokens."""
    worker, checkpoint = get_worker(), inspect(Path(config.model_path))
    import_mlx_vlm(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    token = image_placeholder(checkpoint)
    assert token is not None
    reader = MediaReader(checkpoint, tokenizer, {"image": token}, PixelBounds())
    examples = read_examples(config, tokenizer, int(tokenizer.wrapper.eos_token_id), reader).train
    network = worker.run(TrainedNetwork, checkpoint, config)
    assert network.vision is not None
    features = Features(network.vision, reader, None)
    return [
        worker.run(network.loss, Batch(some, features.plans(some)))
        for some in [*([example] for example in examples), examples]
    ]


def test_mlx_vlm_reads_our_adapters_and_we_its(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Each loads what the other has written, whatever layers it is of, and gives the same logits."""
    theirs: Any = load_network(inspect(base))[0].whole
    tokens = mx.array([[5, 6, 7]])
    load_adapters(theirs, adapter)
    assert (both_logits(theirs, base, adapter, tokens)).max() < 1e-5
    other: Any = load_network(inspect(base))[0].whole
    mx.random.seed(0)  # half of the adapter is random
    get_peft_model(other, ["q_proj", "down_proj"], rank=3, verbose=False)
    other.language_model.update({"model": {"layers": [{"self_attn": {"q_proj": {"lora_b": mx.full((3, 64), 10.0)}}}]}})
    save_trainable_weights(other, tmp_path / "adapters.safetensors")
    assert (both_logits(other, base, tmp_path, tokens)).max() < 1e-5


def both_logits(theirs: Any, base: Path, adapter: Path, tokens: mx.array) -> np.ndarray[Any, Any]:
    """How far apart our logits and theirs are; both are far from the base's."""
    ours: Any = load_network(inspect(base))[0]
    plain = np.array(ours.whole(tokens).logits)
    load_adapter(ours, adapter)
    theirs.eval()
    ours.whole.eval()
    mine = np.array(ours.whole(tokens).logits)
    assert np.abs(mine - plain).max() > 0.01
    return np.abs(mine - np.array(theirs(tokens).logits))


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """Trained and fused, they lose as little as the last validation said."""
    path = other_vision.build(tmp_path / family, family)
    given = rows(tmp_path)[:8]
    config = told(
        tmp_path,
        "out",
        path,
        given,
        steps=6,
        validation_share=0.5,
        batch_size=2,
        rank=2,
        validate_every=6,
        learning_rate=1e-2,
    )
    result = train(config)
    fused = fuse(str(path), result.path, tmp_path / "fused")
    again = train(told(tmp_path, "again", fused, given, steps=1, validation_share=0.5, batch_size=2))
    first, last = (
        [float(line.split(",")[1]) for line in (run.path / "validation.csv").read_text().splitlines()[1:]]
        for run in (again, result)
    )
    assert last[-1] < last[0] - 0.01
    assert abs(first[0] - last[-1]) < 1e-4
