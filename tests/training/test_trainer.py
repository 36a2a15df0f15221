"""Training: it learns, it goes on after anything as if nothing had been, and what it writes is used by others."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from lib_mlx.conversion.config import ConvertConfig
from lib_mlx.conversion.conversion import convert
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import CorruptModel, InvalidArgument, UnsupportedFeature
from lib_mlx.training.trainer import Batches, train
from tests.training.conftest import train_until_killed, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.training.config import TrainConfig
    from lib_mlx.training.trainer import Progress

FILES = (
    "adapters.safetensors",
    "adapter_config.json",
    "checkpoint.safetensors",
    "loss.csv",
    "loss.svg",
    "validation.csv",
)


def test_it_learns(config: Callable[..., TrainConfig]) -> None:
    """The loss of what was not shown falls to nearly nothing; files tell of it."""
    steps: list[Progress] = []
    told = config(steps=240, validate_every=80, warmup=10, schedule="cosine", learning_rate=3e-3)
    result = train(told, steps.append)
    assert (result.ended, result.step, len(steps)) == ("done", 240, 240)
    assert result.best_validation_loss is not None
    assert result.best_validation_loss < 0.1
    assert steps[0].loss > 3
    assert steps[-1].eta_s == 0
    assert all(step.tokens_per_second > 0 and step.memory_bytes > 0 for step in steps)
    rows = (result.path / "loss.csv").read_text().splitlines()
    assert len(rows) == 241
    assert [line.split(",")[0] for line in (result.path / "validation.csv").read_text().splitlines()] == [
        "step",
        "0",
        "80",
        "160",
        "240",
    ]
    assert "step 240" in "".join(ET.fromstring((result.path / "loss.svg").read_text()).itertext())


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters(config: Callable[..., TrainConfig], tiny: Path, method: str) -> None:
    """An adapter alone is trained, of the last layers if so told; the model's own files stay as they were."""
    before = (tiny / "model.safetensors").read_bytes()
    result = train(config(method=method, steps=30, layers=1, rank=4, dropout=0.1))
    weights = load_file(result.path / "adapters.safetensors")
    assert {name.split(".")[2] for name in weights} == {"1"}
    assert {name.rpartition(".")[2] for name in weights} == {"lora_a", "lora_b"} | (
        {"m"} if method == "dora" else set()
    )
    assert any(array.any() for name, array in weights.items() if name.endswith("lora_b"))
    assert json.loads((result.path / "adapter_config.json").read_text())["fine_tune_type"] == method
    assert (tiny / "model.safetensors").read_bytes() == before


def test_going_on_is_the_same_as_never_stopping(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Interrupted anywhere, with dropout and a schedule, the weights and the losses are the same bit for bit."""
    told = {"method": "lora", "dropout": 0.2, "schedule": "linear", "accumulation": 2, "batch_size": 4, "steps": 20}
    whole = train(config(**told, output_path=str(tmp_path / "whole"), validate_every=6))
    seen: list[Progress] = []
    again = config(**told, output_path=str(tmp_path / "parts"), validate_every=6, save_every=5)
    first = train(again, seen.append, lambda: len(seen) == 7)
    assert (first.ended, first.step) == ("interrupted", 7)
    second = train(again)
    assert (second.ended, second.step) == ("done", 20)
    for name in ("adapters.safetensors", "checkpoint.safetensors"):
        ours, theirs = load_file(whole.path / name), load_file(second.path / name)
        assert set(ours) == set(theirs)
        assert all((ours[key] == theirs[key]).all() for key in ours)
    losses = [
        [line.split(",")[1] for line in (path / "loss.csv").read_text().splitlines()]
        for path in (whole.path, second.path)
    ]
    assert losses[0] == losses[1]
    assert whole.best_validation_loss == second.best_validation_loss


def test_going_on_after_a_kill(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """What a killed process wrote last is gone on with, to the same end."""
    told = config(steps=30, save_every=4, output_path=str(tmp_path / "killed"))
    train_until_killed(told, 10)
    seen: list[Progress] = []
    killed = train(told, seen.append)
    assert 4 < seen[0].step <= 30
    assert sorted(file.name for file in killed.path.iterdir()) == sorted(FILES)
    whole = train(config(steps=30, output_path=str(tmp_path / "whole")))
    ours, theirs = (load_file(one.path / "checkpoint.safetensors") for one in (killed, whole))
    assert all((ours[key] == theirs[key]).all() for key in theirs)


def test_early_stop(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Without a better validation for so long it ends, and the best adapter is the one kept."""
    told: dict[str, Any] = {"method": "lora", "learning_rate": 0.3, "validate_every": 2, "patience": 3}
    result = train(config(**told, steps=60))
    assert result.ended == "stopped early"
    assert result.step < 60
    validations = [line.split(",") for line in (result.path / "validation.csv").read_text().splitlines()[1:]]
    best = min(validations, key=lambda row: float(row[1]))
    assert float(best[1]) == result.best_validation_loss
    assert 0 < int(best[0]) < result.step
    until = train(config(**told, steps=int(best[0]), output_path=str(tmp_path / "until")))
    ours, theirs = (load_file(one.path / "adapters.safetensors") for one in (result, until))
    assert all((ours[key] == theirs[key]).all() for key in theirs)


def test_a_loss_that_is_no_number(config: Callable[..., TrainConfig]) -> None:
    """A training that diverges ends with an error that says so, and what was kept before stays."""
    told = config(method="lora", learning_rate=1e30, optimizer="sgd", steps=60, validate_every=1)
    with pytest.raises(InvalidArgument, match="diverged") as raised:
        train(told)
    assert raised.value.param == "learning_rate"
    kept = load_file(Path(told.output_path) / "adapters.safetensors")
    assert all(np.isfinite(array).all() for array in kept.values())


def test_what_cannot_be_gone_on_with(config: Callable[..., TrainConfig]) -> None:
    """Other settings in the same folder are refused by name; more steps are not."""
    train(config(steps=2))
    with pytest.raises(InvalidArgument, match="batch_size = 8, not 4"):
        train(config(steps=2, batch_size=4))
    assert train(config(steps=3)).step == 3


def test_a_schedule_that_ends_with_the_steps(config: Callable[..., TrainConfig]) -> None:
    """Where the learning rate depends on the number of steps, it is not changed on the way."""
    train(config(steps=2, schedule="cosine"))
    with pytest.raises(InvalidArgument, match="steps = 2, not 3"):
        train(config(steps=3, schedule="cosine"))


def test_the_adapter_of_somebody_else(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """It is not written over; the one of a training that was killed before its first checkpoint is."""
    told = config(method="lora", steps=1, output_path=str(tmp_path / "given"))
    made = train(told).path
    (made / "checkpoint.safetensors").unlink()
    assert train(told).step == 1
    for name in ("checkpoint.safetensors", "loss.csv", "validation.csv"):
        (made / name).unlink()
    before = (made / "adapters.safetensors").read_bytes()
    with pytest.raises(InvalidArgument, match="holds an adapter") as raised:
        train(told)
    assert raised.value.param == "output_path"
    assert (made / "adapters.safetensors").read_bytes() == before


def test_what_cannot_be_trained(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """More layers than there are, or none, a place that is taken, and what is for other models, are told."""
    with pytest.raises(UnsupportedFeature, match="2 layers, not 3"):
        train(config(method="lora", layers=3))
    with pytest.raises(InvalidArgument, match="other inputs than the first time"):
        train(config(method="lora", dropout=0.1, checkpoint_layers=True))
    with pytest.raises(InvalidArgument, match="min_pixels is for models that read images"):
        train(config(min_pixels=3136))
    small = ConvertConfig(model_path=config().model_path, output_path=str(tmp_path / "small"), bits=8)
    with pytest.raises(UnsupportedFeature, match="convert --dequantize"):
        train(config(model_path=str(convert(small).path)))
    assert train(config(model_path=str(tmp_path / "small"), method="lora", steps=1)).step == 1
    with pytest.raises(InvalidArgument, match="'seed'"):
        config(seed=-1)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="file is a file"):
        train(config(output_path=str(tmp_path / "file" / "out")))


def test_few_examples(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Fewer than a batch are a smaller batch."""
    few = write_jsonl(tmp_path / "few.jsonl", [{"text": "one"}])
    assert train(config(data_path=str(few), steps=2)).step == 2


def test_what_can_be_told(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """No layers, patience without anything to wait for, and an output that is a file, are errors that name the key."""
    with pytest.raises(InvalidArgument, match="no layer would be trained"):
        config(layers=0)
    with pytest.raises(InvalidArgument, match="nothing to wait for"):
        train(config(patience=2, validation_share=0))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="cannot be a folder") as raised:
        train(config(output_path=str(tmp_path / "file"), steps=1))
    assert raised.value.param == "output_path"


def test_other_examples(config: Callable[..., TrainConfig], codes: Path) -> None:
    """A training is not gone on with when its examples have changed."""
    train(config(steps=1))
    codes.write_text(codes.read_text().replace("bravo", "bravado"))
    with pytest.raises(InvalidArgument, match="has had other examples"):
        train(config(steps=2))


@pytest.mark.parametrize("file", ["checkpoint.safetensors", "loss.csv", "validation.csv"])
def test_a_checkpoint_that_cannot_be_read(config: Callable[..., TrainConfig], file: str) -> None:
    """Whatever the folder's files hold, or lack, it is an error of ours that names the folder."""
    path = train(config(steps=1)).path
    (path / file).write_bytes(b"a,b\n1,2\n")
    with pytest.raises(CorruptModel, match="cannot be read"):
        train(config(steps=2))
    if file != "checkpoint.safetensors":
        (path / file).unlink()
        with pytest.raises(CorruptModel, match="No such file"):
            train(config(steps=2))


def test_a_last_step_that_diverges(config: Callable[..., TrainConfig]) -> None:
    """What its update made of the weights is not kept, though the loss before it was a number."""
    told = config(method="lora", steps=1, validation_share=0)
    kept = load_file(train(told).path / "adapters.safetensors")
    with pytest.raises(InvalidArgument, match="diverged"):
        train(
            config(method="lora", steps=2, validation_share=0, learning_rate=1e39, output_path=told.output_path + "x")
        )
    assert not (Path(told.output_path + "x") / "adapters.safetensors").exists()
    assert all(np.isfinite(array).all() for array in kept.values())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adafactor", "muon"])
def test_the_learning_rate_counts(config: Callable[..., TrainConfig], tmp_path: Path, optimizer: str) -> None:
    """Each optimizer takes the rate it is told: a hundredth of it changes the weights far less."""
    told: dict[str, Any] = {"method": "lora", "rank": 2, "steps": 2, "optimizer": optimizer, "validation_share": 0}
    norms = []
    for rate in (1e-2, 1e-4):
        path = train(config(**told, learning_rate=rate, output_path=str(tmp_path / str(rate)))).path
        arrays = load_file(path / "adapters.safetensors")
        norms.append(sum(float((array**2).sum()) for name, array in arrays.items() if name.endswith("lora_b")) ** 0.5)
    assert norms[1] < 0.05 * norms[0]


def test_the_memory_comes_back(config: Callable[..., TrainConfig]) -> None:
    """When a training has ended, or failed, nothing of it is left, with no collector of cycles at work."""
    train(config(steps=1))  # imports
    before = get_worker().run(mx.get_active_memory)
    gc.disable()
    try:
        train(config(steps=2))
        with pytest.raises(InvalidArgument, match="not 4"):
            train(config(steps=3, rank=4))
        assert get_worker().run(mx.get_active_memory) <= before
    finally:
        gc.enable()


def test_batches_come_in_rounds() -> None:
    """Each batch comes once in a round, in an order of the round's own that only the seed decides; all are in one."""
    from lib_mlx.training.examples import Example

    examples = [Example((1,) * length, ((0, length),)) for length in range(2, 14)]
    batches, same, other = Batches(examples, 3, 1), Batches(examples, 3, 1), Batches(examples, 3, 2)
    rounds = [[len(batches[4 * turn + place][0].tokens) for place in range(4)] for turn in range(6)]
    assert all(sorted(turn) == [2, 5, 8, 11] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1
    assert same[17] == batches[17]
    uneven = Batches(examples[:11], 3, 1)
    assert sorted(len(example.tokens) for place in range(4) for example in uneven[place]) == [*range(2, 13)]
    assert [other[number] for number in range(24)] != [batches[number] for number in range(24)]
    odd = Batches(examples[:8], 3, 1)
    assert sorted(len(example.tokens) for number in range(3) for example in odd[number]) == list(range(2, 10))


def test_a_speed_is_told_early(config: Callable[..., TrainConfig]) -> None:
    """The first step tells how long it will take."""
    told: list[Progress] = []
    begun = time.monotonic()
    train(config(steps=50), told.append, lambda: len(told) == 5)
    assert 0 < told[0].eta_s < 100 * (time.monotonic() - begun)
