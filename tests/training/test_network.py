"""One update of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from lib_mlx.engine.worker import get_worker
from lib_mlx.models.checkpoint import inspect
from lib_mlx.training.examples import Example
from lib_mlx.training.network import Batch, TrainedNetwork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.training.config import TrainConfig


def test_compiled_it_learns_the_same(config: Callable[..., TrainConfig], tiny: Path) -> None:
    """As where MLX compiles functions, on a GPU: with accumulation and dropout, the losses are those of here."""
    batches = [Batch([Example(tuple(range(5, 5 + length)), ((1, length),))]) for length in (9, 40)]

    def losses(*, compiled: bool) -> list[float]:
        network = TrainedNetwork(inspect(tiny), config(method="lora", dropout=0.1, learning_rate=1e-2))
        if compiled:
            mx.enable_compile()
        try:
            return [network.update(step, batches)[0] for step in (1, 2, 3)] + [network.loss(batches[0])[0]]
        finally:
            mx.disable_compile()

    plain, same = (get_worker().run(lambda compiled=compiled: losses(compiled=compiled)) for compiled in (False, True))
    assert plain[2] < plain[0]
    assert all(abs(one - other) < 1e-4 for one, other in zip(plain, same, strict=True))


def test_batches_of_an_update_count_by_their_tokens(config: Callable[..., TrainConfig], tiny: Path) -> None:
    """Two batches of other lengths make the update that one batch of both examples makes."""
    examples = [Example(tuple(range(5, 5 + length)), ((begin, length),)) for length, begin in ((9, 7), (40, 1))]

    def learnt(batches: list[Batch]) -> dict[str, mx.array]:
        network = TrainedNetwork(inspect(tiny), config(optimizer="sgd", learning_rate=0.1))
        network.update(1, batches)
        return network.weights()

    def largest() -> float:
        apart, together = learnt([Batch([one]) for one in examples]), learnt([Batch(examples)])
        return max(float(mx.abs(apart[name] - together[name]).max().item()) for name in apart)

    assert get_worker().run(largest) < 1e-5
