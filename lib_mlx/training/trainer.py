"""Fine-tuning from the first step to the last, or from a checkpoint on."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

from lib_mlx.engine.imports import import_on_worker
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import CorruptModel, InvalidArgument
from lib_mlx.generation import PixelBounds
from lib_mlx.models import store
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.disk import check_folder, make_folder, room_on, staged_file
from lib_mlx.models.upstream_vlm import import_mlx_vlm
from lib_mlx.training.progress import LOSSES, History, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer
    from lib_mlx.models.media_reader import MediaReader
    from lib_mlx.training.config import TrainConfig
    from lib_mlx.training.examples import Example, Examples
    from lib_mlx.training.features import Features
    from lib_mlx.training.network import Batch, TrainedNetwork

_CHECKPOINT = "checkpoint.safetensors"
# What a continuation may change.
_FREE = {"output_path", "patience", "save_every", "validate_every", "image_cache_bytes"}


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    step: int
    steps: int
    loss: float
    """Of the last step."""
    validation_loss: float | None
    """Of the last validation; None before the first."""
    tokens_per_second: float
    eta_s: float
    memory_bytes: int
    """The most that MLX has had so far."""


@dataclass(frozen=True)
class TrainResult:
    """What has become of a training."""

    path: Path
    """The adapter's directory."""
    step: int
    """The last one."""
    loss: float
    best_validation_loss: float | None
    ended: str
    """"done", "stopped early" or "interrupted"."""
    cut: tuple[str, ...]
    """Which examples were too long."""


def train(
    config: TrainConfig,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Fine-tune a model; blocks. Steps run on the engine thread, between those of models that serve.

    What is in `output_path` already is gone on with, bit for bit as if it had not been interrupted. The adapter kept is
    the one with the best validation, or without any the last.

    Args:
        config: what to do.
        progress: told after each step.
        cancelled: asked after each step; the training can be gone on with later.

    Raises:
        InvalidArgument: the examples are wrong, or what is to be gone on with was told otherwise.
        LibMlxError: the model is not there or cannot be trained, or does not fit.
    """
    from lib_mlx.models.loader import load_tokenizer
    from lib_mlx.training.examples import read_examples
    from lib_mlx.training.features import Features

    if config.checkpoint_layers and config.dropout:
        raise InvalidArgument(
            "Layers that are computed again would leave out other inputs than the first time.",
            hint="Use dropout 0 with checkpoint_layers.",
            param="dropout",
        )
    folder = Path(config.output_path).expanduser()
    check_folder(folder)
    checkpoint = inspect(store.resolve(config.model_path), trust_remote_code=config.trust_remote_code)
    worker = get_worker()
    import_on_worker("lib_mlx.training.network")
    from lib_mlx.training.network import TrainedNetwork

    _refuse_foreign(folder)
    if checkpoint.has_towers:
        import_mlx_vlm(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    images = _image_reader(checkpoint, tokenizer, config)
    examples = read_examples(config, tokenizer, int(tokenizer.wrapper.eos_token_id), images)
    if config.patience is not None and not examples.valid:
        raise InvalidArgument(
            "Without examples for validation, patience has nothing to wait for.",
            hint="Raise validation_share, write a valid.jsonl, or leave patience out.",
            param="patience",
        )
    batches = Batches(examples.train, config.batch_size, config.seed)
    with room_on(folder), contextlib.ExitStack() as end:
        network = worker.run(TrainedNetwork, checkpoint, config)
        end.callback(worker.run, network.close)
        features = None
        if network.vision is not None and images is not None:
            features = Features(network.vision, images, config.image_cache_bytes)
            end.callback(worker.run, features.close)
        return _Training(config, folder, network, examples, batches, features).run(progress, cancelled)


def _refuse_foreign(folder: Path) -> None:
    """Leave an adapter alone that no training of ours has made here: it would be written over."""
    from lib_mlx.models.adapters import CONFIG, WEIGHTS

    def holds(*names: str) -> bool:
        return any((folder / name).exists() for name in names)

    if holds(CONFIG, WEIGHTS) and not holds(LOSSES, _CHECKPOINT):
        raise InvalidArgument(
            f"{folder} holds an adapter, and nothing of a training to go on with.",
            hint="Choose another output_path.",
            param="output_path",
        )


def _image_reader(checkpoint: Checkpoint, tokenizer: LoadedTokenizer, config: TrainConfig) -> MediaReader | None:
    """Return what reads the images of examples; None of a model that reads none."""
    from lib_mlx.models.media_reader import MediaReader
    from lib_mlx.models.vision_network import image_placeholder

    placeholder = image_placeholder(checkpoint) if checkpoint.has_towers else None
    if placeholder is not None:
        bounds = PixelBounds(config.min_pixels, config.max_pixels)
        return MediaReader(checkpoint, tokenizer, {"image": placeholder}, bounds)
    for name in ("min_pixels", "max_pixels"):
        if getattr(config, name) is not None:
            raise InvalidArgument(f"{name} is for models that read images.", hint="Leave it out.", param=name)
    return None


class _Training:
    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        network: TrainedNetwork,
        examples: Examples,
        batches: Batches,
        features: Features | None,
    ) -> None:
        self._features = features
        self._config = config
        self._folder = folder
        self._network = network
        self._examples = examples
        self._digest = examples.digest()
        self._batches = batches
        self._history = History(folder)
        self._step = 0
        self._best = math.inf
        self._bad = 0  # validations since the best

    def run(self, progress: Callable[[Progress], None], cancelled: Callable[[], bool]) -> TrainResult:
        """Go from where the folder is to the end."""
        config, worker = self._config, get_worker()
        make_folder(self._folder)
        worker.run(self._restore)
        if not self._history.rows and self._examples.valid:
            self._validated(self._validate(), 0)
        ended, begun, first = "done", time.monotonic(), self._step
        while self._step < config.steps and ended == "done":
            row = self._advance()
            spent = time.monotonic() - begun
            eta = spent / (self._step - first) * (config.steps - self._step)
            progress(
                Progress(
                    self._step,
                    config.steps,
                    row.loss,
                    self._history.last_validation,
                    row.tokens_per_second,
                    eta,
                    row.memory_bytes,
                )
            )
            if config.patience is not None and self._bad >= config.patience:
                ended = "stopped early"
            elif cancelled():
                ended = "interrupted"
        worker.run(self._save)
        best = None if self._best == math.inf else self._best
        return TrainResult(self._folder, self._step, self._history.last_loss, best, ended, tuple(self._examples.cut))

    def _advance(self) -> Row:
        """Do one step, and what is due after it."""
        config, worker = self._config, get_worker()
        first = self._step * config.accumulation
        batches = [self._batch(self._batches[first + index]) for index in range(config.accumulation)]
        begun = time.monotonic()
        loss, tokens = worker.run(self._network.update, self._step + 1, batches)
        self._step += 1
        if not math.isfinite(loss):
            raise _diverged(f"The loss is {loss}", self._step)
        rate = worker.run(lambda: self._network.learning_rate)
        row = Row(self._step, loss, rate, tokens / (time.monotonic() - begun), _memory())
        self._history.add(row)
        last = self._step == config.steps
        if self._examples.valid and (last or self._step % config.validate_every == 0):
            self._validated(self._validate(), self._step)
        if self._step % config.save_every == 0:
            worker.run(self._save)
        return row

    def _batch(self, examples: list[Example]) -> Batch:
        """Return a batch with what its images are."""
        from lib_mlx.training.network import Batch

        return Batch(examples, self._features.plans(examples) if self._features else ())

    def _validate(self) -> float:
        total, count, size = 0.0, 0, self._config.batch_size
        for begin in range(0, len(self._examples.valid), size):
            batch = self._batch(self._examples.valid[begin : begin + size])
            loss, tokens = get_worker().run(self._network.loss, batch)
            total, count = total + loss * tokens, count + tokens
        return total / count

    def _validated(self, loss: float, step: int) -> None:
        self._history.validated(step, loss)
        if loss < self._best:
            self._best, self._bad = loss, 0
            get_worker().run(self._keep)
        else:
            self._bad += 1

    # Files

    def _keep(self) -> None:
        """Write the adapter as it is."""
        self._refuse_unsound()
        from lib_mlx.models.adapters import CONFIG, WEIGHTS
        from lib_mlx.models.writing import save_arrays

        save_arrays(self._folder / WEIGHTS, self._network.weights(), {})
        text = json.dumps({**self._network.shape.to_json(), "model": self._config.model_path}, indent=2)
        _write(self._folder / CONFIG, text)

    def _save(self) -> None:
        """Write what a continuation needs, the history, and without validations the adapter."""
        from lib_mlx.models.writing import save_arrays

        self._refuse_unsound()
        if not self._examples.valid:
            self._keep()
        self._history.save()  # first: of rows behind the checkpoint's step nothing is read
        state = {
            "step": self._step,
            "best": None if self._best == math.inf else self._best,
            "bad": self._bad,
            "config": self._config.model_dump(mode="json"),
            "examples": self._digest,
        }
        save_arrays(self._folder / _CHECKPOINT, self._network.state(), {"training": json.dumps(state)})

    def _restore(self) -> None:
        """Go on from the folder's checkpoint, if there is one."""
        file = self._folder / _CHECKPOINT
        if not file.is_file():
            self._history.save()  # what is kept before the first checkpoint is known as a training's by it
            return
        try:
            self._take_up(file)
        except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CorruptModel(
                f"What {self._folder} holds of a training cannot be read: {error}.", hint="Use another output_path."
            ) from error

    def _take_up(self, file: Path) -> None:
        import mlx.core as mx

        arrays, metadata = cast("Any", mx.load(str(file), return_metadata=True))
        state = json.loads(metadata["training"])
        self._refuse_other(state["config"], state.get("examples"))
        self._network.restore(arrays)
        self._step, self._bad = state["step"], state["bad"]
        self._best = math.inf if state["best"] is None else state["best"]
        self._history.load(self._step)

    def _refuse_unsound(self) -> None:
        """Keep what was saved before from being overwritten by what is of no use."""
        if not self._network.sound:
            raise _diverged("Weights are no numbers any more", self._step)

    def _refuse_other(self, before: dict[str, Any], examples: str | None) -> None:
        now = self._config.model_dump(mode="json")
        free = {*_FREE, "steps"} if self._config.schedule == "constant" else _FREE  # other schedules end with the steps
        for key in now:
            if key not in free and now[key] != before.get(key):
                raise InvalidArgument(
                    f"The training in {self._folder} has {key} = {before.get(key)!r}, not {now[key]!r}.",
                    hint="Go on with the same, or choose another output_path.",
                    param=key,
                )
        if examples != self._digest:
            raise InvalidArgument(
                f"The training in {self._folder} has had other examples.",
                hint="Go on with the same, or choose another output_path.",
                param="data_path",
            )


class Batches:
    """Batches without end, the n-th of which depends on the seed and n alone. Examples of one length go together.

    What is left over is a smaller batch: otherwise the longest examples would never be learnt.
    """

    def __init__(self, examples: list[Example], size: int, seed: int) -> None:
        ordered = sorted(examples, key=lambda example: len(example.tokens))
        self._batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
        self._seed = seed
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, number: int) -> list[Example]:
        """Return a batch; all come once in each round."""
        epoch, place = divmod(number, len(self._batches))
        if self._epoch[0] != epoch:
            order = list(range(len(self._batches)))
            Random(f"{self._seed} {epoch}").shuffle(order)  # noqa: S311 - not a secret
            self._epoch = (epoch, order)
        return self._batches[self._epoch[1][place]]


def _diverged(what: str, step: int) -> InvalidArgument:
    return InvalidArgument(
        f"{what} at step {step}: the training diverged.",
        hint="Lower the learning rate, or begin with a warmup; what was saved before is in the folder.",
        param="learning_rate",
    )


def _memory() -> int:
    import mlx.core as mx

    return int(get_worker().run(mx.get_peak_memory))


def _write(path: Path, text: str) -> None:
    with staged_file(path) as staged:
        staged.write_text(text, encoding="utf-8")
