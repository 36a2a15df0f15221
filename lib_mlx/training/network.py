"""The network that is trained, and one update of its weights. Engine thread only."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import numpy as np
from mlx import optimizers
from mlx.nn.losses import cross_entropy
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from lib_mlx import memory
from lib_mlx.engine.device import set_up
from lib_mlx.errors import CorruptModel, InsufficientMemory
from lib_mlx.models.adapters import AdapterShape, add_adapter
from lib_mlx.models.loader import load_text_network
from lib_mlx.models.upstream_tuner import dequantize_model, grad_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.training.config import TrainConfig
    from lib_mlx.training.examples import Example

_PAD = 32  # lengths are multiples of it, so that few shapes occur
_OPTIMIZERS = {
    "adam": optimizers.Adam,
    "adamw": optimizers.AdamW,
    "sgd": optimizers.SGD,
    "adafactor": optimizers.Adafactor,
    "muon": optimizers.Muon,
}


class TrainedNetwork:
    """A network with an optimizer."""

    def __init__(self, checkpoint: Checkpoint, config: TrainConfig) -> None:
        set_up()
        mx.random.seed(config.seed)
        self._seed = config.seed
        self._network: Any = load_text_network(checkpoint)
        if mx.default_device() == mx.cpu or config.method == "full":
            _widen(self._network)
        shape = AdapterShape(config.method, config.layers, config.rank, config.scale, config.dropout)
        add_adapter(self._network, shape)
        self.shape = shape
        if config.checkpoint_layers:
            grad_checkpoint(self._network.layers[0])
        self._optimizer = _optimizer(config)
        self._optimizer.init(self._network.trainable_parameters())
        mx.eval(self._network.parameters(), self._optimizer.state)
        self._loss_and_gradient: Any = value_and_grad(self._network, _loss)
        self._compute = self._compiled()

    def update(self, step: int, batches: Sequence[Sequence[Example]]) -> tuple[float, int]:
        """Learn from `batches`; returns the mean loss of their tokens and how many these are.

        What is random depends on the seed and the number of the step alone.
        """
        mx.random.seed((self._seed << 32) + step)
        self._network.train()
        total, tokens, gradient = 0.0, 0, None
        for batch in batches:
            loss, count, gradient = cast("Any", self._compute(_arrays(batch), gradient))
            mx.eval(loss, count, gradient)
            size = int(count.item())
            total, tokens = total + float(loss.item()) * size, tokens + size
        if len(batches) > 1:
            gradient = tree_map(lambda array: array / len(batches), gradient)
        self._optimizer.update(self._network, gradient)
        mx.eval(self._network.trainable_parameters(), self._optimizer.state)
        return total / tokens, tokens

    def loss(self, batch: Sequence[Example]) -> tuple[float, int]:
        """Return the loss of a batch, and how many tokens it is the mean of."""
        self._network.eval()
        loss, count = cast("Any", _loss(self._network, *_arrays(batch)))
        return float(loss.item()), int(count.item())

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

    def _compiled(self) -> Any:
        state = [self._network.state, mx.random.state]

        @partial(mx.compile, inputs=state, outputs=[mx.random.state])  # a no-op on the CPU, see engine.device
        def compute(batch: tuple[mx.array, mx.array], gradient: Any) -> Any:
            (loss, count), own = self._loss_and_gradient(self._network, *batch)
            return loss, count, own if gradient is None else tree_map(mx.add, own, gradient)

        return compute


def _loss(network: Any, tokens: mx.array, learnt: mx.array) -> tuple[mx.array, mx.array]:
    """Return the mean cross-entropy of the tokens that are learnt, and their number."""
    count = learnt.sum()
    entropy = cross_entropy(network(tokens[:, :-1]), tokens[:, 1:]) * learnt
    return entropy.astype(mx.float32).sum() / count, count


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
    return mx.array(tokens), mx.array(learnt[:, 1:])


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
    return kind(learning_rate=rate)
