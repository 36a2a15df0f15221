"""The network that is trained, and one update of its weights. Engine thread only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import numpy as np
from mlx import optimizers
from mlx.nn.losses import cross_entropy
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from lib_mlx import memory
from lib_mlx.engine import heap
from lib_mlx.engine.device import set_up
from lib_mlx.errors import CorruptModel, InsufficientMemory, UnsupportedFeature
from lib_mlx.models.adapters import AdapterShape, add_adapter
from lib_mlx.models.loader import load_network
from lib_mlx.models.upstream_tuner import dequantize_model, grad_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.vision_network import MediaPlan
    from lib_mlx.training.config import TrainConfig
    from lib_mlx.training.examples import Example

    Plans = Sequence[MediaPlan | None]

_PAD = 32  # lengths are multiples of it, so that few shapes occur
_OPTIMIZERS = {
    "adam": optimizers.Adam,
    "adamw": optimizers.AdamW,
    "sgd": optimizers.SGD,
    "adafactor": optimizers.Adafactor,
    "muon": optimizers.Muon,
}


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples at once, and what their images are to the network; of a model of text alone nothing."""

    examples: Sequence[Example]
    plans: Plans = ()


class TrainedNetwork:
    """A network with an optimizer. Of a vision model the language part is trained, and the rest stays as it is."""

    def __init__(self, checkpoint: Checkpoint, config: TrainConfig) -> None:
        set_up()
        mx.random.seed(config.seed)
        self._seed = config.seed
        network, self.vision = load_network(checkpoint)
        self._network: Any = self.vision.whole if self.vision else network
        self._language: Any = self.vision.language if self.vision else network
        if self.vision:
            _refuse_untrainable(checkpoint)
        if config.method == "full":
            _refuse_quantised(self._language)
        if mx.default_device() == mx.cpu:
            _widen(self._network)
        elif config.method == "full":
            _widen(self._language)
        shape = AdapterShape(config.method, config.layers, config.rank, config.scale, config.dropout)
        add_adapter(network, shape)
        self.shape = shape
        if config.checkpoint_layers:
            grad_checkpoint(network.layers[0])
        self._network.eval()
        self._optimizer = _optimizer(config)
        self._optimizer.init(self._network.trainable_parameters())
        mx.eval(self._network.parameters(), self._optimizer.state)
        self._loss_and_gradient: Any = value_and_grad(self._network, self._loss)
        # What upstream does with images looks at values, which a compiled function has none of.
        self._compute = self._add_gradient if self.vision else self._compiled()

    def update(self, step: int, batches: Sequence[Batch]) -> tuple[float, int]:
        """Learn from `batches`; returns the mean loss of their tokens and how many these are.

        What is random depends on the seed and the number of the step alone.
        """
        mx.random.seed((self._seed << 32) + step)
        self._language.train()
        parts = [(_arrays(batch.examples), batch.plans) for batch in batches]
        counts = [int(cast("Any", learnt.sum()).item()) for (_, learnt), _ in parts]
        total, tokens, gradient = 0.0, sum(counts), None
        for (arrays, plans), count in zip(parts, counts, strict=True):
            share = mx.array(count / tokens)
            loss, gradient = cast("Any", self._compute(arrays, share, gradient, plans))
            mx.eval(loss, gradient)
            total += float(loss.item()) * count
        self._optimizer.update(self._network, gradient)
        mx.eval(self._network.trainable_parameters(), self._optimizer.state)
        return total / tokens, tokens

    def loss(self, batch: Batch) -> tuple[float, int]:
        """Return the loss of a batch, and how many tokens it is the mean of."""
        self._language.eval()
        loss, count = self._loss(*_arrays(batch.examples), batch.plans)
        return float(cast("Any", loss).item()), int(cast("Any", count).item())

    @property
    def learning_rate(self) -> float:
        """Of the last update."""
        return float(self._optimizer.learning_rate.item())

    def weights(self) -> dict[str, mx.array]:
        """Return what is trained, by name."""
        return dict(cast("Any", tree_flatten(self._network.trainable_parameters())))

    def state(self) -> dict[str, mx.array]:
        """Return all that a continuation needs, by name."""
        moments: Any = tree_flatten(self._optimizer.state)
        return {
            **{f"weights.{name}": array for name, array in self.weights().items()},
            **{f"optimizer.{name}": array for name, array in moments},
        }

    def restore(self, state: dict[str, mx.array]) -> None:
        """Go on from what `state` returned; raises CorruptModel if that is of something else."""
        known = {name: array.shape for name, array in self.state().items()}
        if known != {name: array.shape for name, array in state.items()}:
            raise CorruptModel("The checkpoint is of another training.", hint="Use another output_path.")
        mine = [(name.removeprefix("weights."), array) for name, array in state.items() if name.startswith("weights.")]
        self._network.load_weights(mine, strict=False)
        moments = [(name.removeprefix("optimizer."), array) for name, array in state.items() if name[0] == "o"]
        self._optimizer.state = tree_unflatten(moments)
        self._optimizer.init(self._network.trainable_parameters())
        mx.eval(self._network.parameters(), self._optimizer.state)

    @property
    def sound(self) -> bool:
        """Whether what is trained is all numbers."""
        return all(mx.isfinite(array).all().item() for array in self.weights().values())

    def close(self) -> None:
        """Let go of everything: what takes gradients refers to this object again, which would keep it."""
        self.__dict__.clear()
        heap.release()

    def _compiled(self) -> Any:
        state = [self._network.state, mx.random.state]
        # a no-op on the CPU, see engine.device
        return mx.compile(self._add_gradient, inputs=state, outputs=state)

    def _add_gradient(self, batch: tuple[mx.array, mx.array], share: mx.array, gradient: Any, plans: Plans) -> Any:
        """Return a batch's loss, and the gradient of all so far: each has its share of the tokens."""
        (loss, _), own = self._loss_and_gradient(*batch, plans)
        own = tree_map(lambda array: (array * share).astype(array.dtype), own)
        return loss, own if gradient is None else tree_map(mx.add, own, gradient)

    def _loss(self, tokens: mx.array, learnt: mx.array, plans: Plans) -> tuple[mx.array, mx.array]:
        """Return the mean cross-entropy of the tokens that are learnt, and their number."""
        count = learnt.sum()
        given = tokens[:, :-1]
        logits = self.vision.score(given, plans) if self.vision else self._network(given)
        entropy = cross_entropy(logits, mx.maximum(tokens[:, 1:], 0)) * learnt
        return entropy.astype(mx.float32).sum() / count, count


def _refuse_untrainable(checkpoint: Checkpoint) -> None:
    from lib_mlx.models.upstream_vlm_tuner import not_supported_for_training

    if checkpoint.model_type in not_supported_for_training:
        raise UnsupportedFeature(
            f"mlx-vlm cannot train models of the architecture {checkpoint.model_type!r}.",
            hint="Use another model.",
            param="model_path",
        )


def _refuse_quantised(network: Any) -> None:
    """Refuse weights that no adapter of other types has a place for."""
    arrays: Iterable[tuple[str, mx.array]] = cast("Any", tree_flatten(network.parameters()))
    if any(array.dtype == mx.uint32 for _, array in arrays):
        raise UnsupportedFeature(
            "Quantised weights themselves cannot be trained.",
            hint="Use lora or dora; or make them floating-point first: lib-mlx convert --dequantize.",
            param="method",
        )


def _arrays(batch: Sequence[Example]) -> tuple[mx.array, mx.array]:
    """Return tokens (batch, length) and whether each but the first is learnt (batch, length - 1)."""
    longest = max(len(example.tokens) for example in batch)
    length = 1 + _PAD * -(-(longest - 1) // _PAD)
    tokens = np.zeros((len(batch), length), np.int32)
    learnt = np.zeros((len(batch), length), bool)
    for row, example in enumerate(batch):
        tokens[row, : len(example.tokens)] = example.tokens
        for begin, end in example.spans:
            learnt[row, begin:end] = True
    return mx.array(tokens), mx.array((learnt & (tokens >= 0))[:, 1:])


def _widen(network: Any) -> None:
    """Make the weights float32: a CPU is faster with them, and sums of many small updates need it."""
    arrays: Iterable[tuple[str, mx.array]] = cast("Any", tree_flatten(network.parameters()))
    need = sum(4 * array.size * (8 if array.dtype == mx.uint32 else 1) for _, array in arrays)
    if need > memory.available_bytes():
        raise InsufficientMemory(
            f"The weights take {need / 1e9:.1f} GB as float32, and {memory.available_bytes() / 1e9:.1f} GB are free.",
            hint="Train a smaller model, or on a GPU.",
        )
    dequantize_model(network)
    network.apply(lambda array: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array)


def _optimizer(config: TrainConfig) -> Any:
    rate: Any = config.learning_rate
    left = max(1, config.steps - config.warmup)
    if config.schedule == "linear":
        rate = optimizers.schedulers.linear_schedule(config.learning_rate, 0.0, left)
    elif config.schedule == "cosine":
        rate = optimizers.schedulers.cosine_decay(config.learning_rate, left)
    if config.warmup:
        begin = optimizers.schedulers.linear_schedule(0.0, config.learning_rate, config.warmup)
        after = rate if callable(rate) else (lambda _: mx.array(config.learning_rate))
        rate = optimizers.schedulers.join_schedules([begin, after], [config.warmup])
    kind: Any = _OPTIMIZERS[config.optimizer]
    if kind is optimizers.Adafactor:  # left alone, it has a rate of its own and passes over the one it is given
        return kind(learning_rate=rate, relative_step=False, scale_parameter=False)
    return kind(learning_rate=rate)
