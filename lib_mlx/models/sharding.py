"""A model's weights over several processes, the ranks of one MLX group: each holds a part and computes with it.

A process is one rank of one group for as long as it lives (`join`), so the group is the process's. Rank 0 decides what
is computed: the tokens it gives the network are those that every rank's network sees. Engine thread only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from lib_mlx.errors import UnsupportedFeature

if TYPE_CHECKING:
    from lib_mlx.config import EngineConfig
    from lib_mlx.models.checkpoint import Checkpoint

_group: mx.distributed.Group | None = None


def join() -> mx.distributed.Group:
    """Become a rank of the group that the environment describes (`mlx.launch` sets it). Once per process.

    Raises:
        RuntimeError: there is none, or its other ranks cannot be reached.
    """
    global _group  # noqa: PLW0603 - one per process is the point
    _group = mx.distributed.init(strict=True)
    return _group


def group() -> mx.distributed.Group | None:
    """Return the group of this process; None if it computes alone."""
    return _group


def ranks() -> int:
    """Return among how many processes a model is divided; 1 if this one computes alone."""
    return 1 if _group is None else _group.size()


def check(checkpoint: Checkpoint, config: EngineConfig) -> None:
    """Refuse what needs the whole model in one process; raises UnsupportedFeature."""
    if checkpoint.has_towers:
        raise UnsupportedFeature(
            "A model that reads images or sounds cannot run on several hosts.",
            hint="Serve it without --hosts.",
            param="model",
        )
    for key in ("adapter_path", "adapters", "prompt_lookup", "draft_model_path", "prefix_cache_path"):
        if getattr(config, key):
            raise UnsupportedFeature(
                f"A model that runs on several hosts takes no {key!r}.", hint=f"Leave {key} out.", param=key
            )


def share(data: bytes | None, size: int) -> bytes:
    """Return what rank 0 gave as `data`, `size` bytes at most; every rank has to call it. Ends with rank 0's call."""
    mine = list((data or b"").ljust(size, b"\0"))
    with mx.stream(mx.cpu):
        values: Any = mx.distributed.all_sum(mx.array(mine, mx.int32), group=_group).tolist()
    return bytes(values).rstrip(b"\0")


def divide(network: Any, checkpoint: Checkpoint) -> ShardedNetwork:
    """Leave this rank its part of `network`, as it was loaded and not evaluated.

    Raises:
        UnsupportedFeature: mlx-lm cannot divide such a network, or not among so many.
    """
    if _group is None:
        raise RuntimeError("this process is no rank")
    if not hasattr(network, "shard"):
        raise UnsupportedFeature(
            f"mlx-lm cannot divide the layers of a model of the architecture {checkpoint.model_type!r}.",
            hint="Run one copy per machine behind a balancer.",
            param="model",
        )
    for key in ("num_attention_heads", "num_key_value_heads"):
        _check_count(key, checkpoint)
    network.shard(_group)
    return ShardedNetwork(network, _group)


def _check_count(key: str, checkpoint: Checkpoint) -> None:
    """Refuse what mlx-lm would divide wrongly without a word."""
    count = checkpoint.config.get(key)
    if isinstance(count, int) and count % ranks():
        raise UnsupportedFeature(
            f"The model has {count} {key.removeprefix('num_').replace('_', ' ')}, "
            f"which cannot be divided among {ranks()} ranks.",
            hint="Name another number of hosts.",
            param="hosts",
        )


class ShardedNetwork(Module):
    """A rank's part of a network. What it is called with counts on rank 0 alone; the others see the same."""

    def __init__(self, network: Any, group: mx.distributed.Group) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network = network
        self._leads = group.rank() == 0
        self._of = group

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        """Return the logits of `inputs` (rows, tokens)."""
        mine = inputs.astype(mx.int32)
        # What the others would go on with still has to be computed: their part of the step before.
        shared = mx.distributed.all_sum(mine if self._leads else mine * 0, group=self._of)
        logits: mx.array = self.network(shared, cache=cache)
        return logits

    @property
    def layers(self) -> Any:
        """The layers of this rank, which have caches."""
        return self.network.layers

    def __getattr__(self, key: str) -> Any:
        if key == "make_cache":  # only where the network makes its own
            return getattr(self["network"], key)
        return super().__getattr__(key)
