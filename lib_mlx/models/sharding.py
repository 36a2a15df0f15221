"""A model's weights over several processes, the ranks of one MLX group: each holds a part and computes with it.

A process is one rank of one group for as long as it lives (`join`), so the group is the process's. Rank 0 decides what
is computed: the tokens it gives the network are those that every rank's network sees. Engine thread only.
"""

from __future__ import annotations

import hashlib
import json
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
from mlx.nn.layers.base import Module

from lib_mlx.errors import LibMlxError, ServerStartFailed, UnsupportedFeature
from lib_mlx.models.upstream import make_prompt_cache

if TYPE_CHECKING:
    from pathlib import Path

    from lib_mlx.config import EngineConfig
    from lib_mlx.models.checkpoint import Checkpoint

_HEADS = ("num_attention_heads", "num_key_value_heads")
_SAMPLE_BYTES = 64 << 10
_group: mx.distributed.Group | None = None
_by_layers = False


def join() -> mx.distributed.Group:
    """Become a rank of the group that the environment describes (`mlx.launch` sets it). Once per process.

    Raises:
        RuntimeError: there is none, or its other ranks cannot be reached.
    """
    global _group  # noqa: PLW0603 - one per process is the point
    _group = mx.distributed.init(strict=True)
    return _group


def choose(kind: Literal["tensor", "pipeline"]) -> None:
    """Have `divide` give each rank a part of every layer, or whole layers."""
    global _by_layers  # noqa: PLW0603 - as the group
    _by_layers = kind == "pipeline"


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
    if config.cpu_weights == "quantized":  # layers of our own multiply with those, and know nothing of ranks
        raise UnsupportedFeature(
            "A model that runs on several hosts takes no 'cpu_weights' of 'quantized'.",
            hint="Leave cpu_weights out.",
            param="cpu_weights",
        )


def software() -> dict[str, str]:
    """Return the versions that have to be the same on all ranks."""
    return {package: version(package) for package in ("lib-mlx", "mlx", "mlx-lm")}


def check_software(wanted: dict[str, str]) -> None:
    """Compare this rank's versions with those of rank 0; raises ServerStartFailed."""
    for package, here in software().items():
        if wanted.get(package) != here:
            raise ServerStartFailed(
                f"It has {package} {here}, and rank 0 has {wanted.get(package)}.",
                hint="Install the same versions on all hosts.",
            )


def fingerprint(checkpoint: Checkpoint) -> str:
    """Name the model: its config, and of each file of weights the size and samples, for they are large."""
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for file in sorted(checkpoint.path.glob("model*.safetensors")):
        _sample(file, digest)
    return digest.hexdigest()


def _sample(file: Path, digest: Any) -> None:
    size = file.stat().st_size
    digest.update(f"{file.name} {size}".encode())
    with file.open("rb") as opened:
        for place in range(8):
            opened.seek(size * place // 8)
            digest.update(opened.read(_SAMPLE_BYTES))
        opened.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(opened.read())


def check_model(checkpoint: Checkpoint, wanted: str) -> None:
    """Compare this rank's model with that of rank 0, whose `fingerprint` is `wanted`; raises ServerStartFailed."""
    if fingerprint(checkpoint) != wanted:
        raise ServerStartFailed(
            f"The model at {checkpoint.path} is not the one that rank 0 has.",
            hint="Copy its files to all hosts.",
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
    try:
        if _by_layers:
            _deal_layers(network, checkpoint, _group)
        else:
            _divide_layers(network, checkpoint, _group)
    except ValueError as error:  # mlx-lm's: of widths, groups of quantised weights, or a number of layers
        raise _uneven(f"The model's layers cannot be divided among {ranks()} ranks: {error}.") from None
    return ShardedNetwork(network, _group, in_turn=_by_layers)


def _divide_layers(network: Any, checkpoint: Checkpoint, group: mx.distributed.Group) -> None:
    """Leave this rank a part of every layer."""
    if not hasattr(network, "shard"):
        raise _indivisible(checkpoint, "divide the layers", "Try a 'sharding' of 'pipeline'.")
    for key in _HEADS:
        _check_count(key, checkpoint)
    network.shard(group)


def _deal_layers(network: Any, checkpoint: Checkpoint, group: mx.distributed.Group) -> None:
    """Leave this rank some of the layers."""
    inner: Any = getattr(network, "model", None)
    if not hasattr(inner, "pipeline"):
        raise _indivisible(checkpoint, "deal out the layers", "Leave 'sharding' out.")
    if len({type(layer) for layer in make_prompt_cache(network)}) > 1:  # then ranks would not do the same steps
        raise _indivisible(checkpoint, "deal out the unlike layers", "Leave 'sharding' out.")
    inner.pipeline(group)


def _indivisible(checkpoint: Checkpoint, what: str, hint: str) -> LibMlxError:
    return UnsupportedFeature(
        f"mlx-lm cannot {what} of a model of the architecture {checkpoint.model_type!r}.",
        hint=f"{hint} Or run one copy per machine behind a balancer.",
        param="model",
    )


def _check_count(key: str, checkpoint: Checkpoint) -> None:
    """Refuse what mlx-lm would divide wrongly without a word."""
    count = (checkpoint.config.get("text_config") or checkpoint.config).get(key)
    if isinstance(count, int) and count % ranks():
        kind = key.removeprefix("num_").replace("_", " ")
        raise _uneven(
            f"The model has {count} {kind}, which cannot be divided among {ranks()} ranks.", _even_numbers(checkpoint)
        )


def _uneven(message: str, hint: str = "Name another number of hosts.") -> LibMlxError:
    return UnsupportedFeature(message, hint=hint, param="hosts")


def _even_numbers(checkpoint: Checkpoint) -> str:
    """Tell among how many hosts the heads can be divided."""
    config = checkpoint.config.get("text_config") or checkpoint.config
    common = math.gcd(*(count for key in _HEADS if isinstance(count := config.get(key), int)))
    able = [str(number) for number in range(2, common + 1) if common % number == 0]
    return f"Its heads can be divided among {', '.join(able)} hosts." if able else "Run one copy per machine instead."


class ShardedNetwork(Module):
    """A rank's part of a network. What it is called with counts on rank 0 alone; the others see the same."""

    def __init__(self, network: Any, group: mx.distributed.Group, *, in_turn: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network = network
        self._in_turn = in_turn
        self._leads = group.rank() == 0
        self._of = group

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        """Return the logits of `inputs` (rows, tokens)."""
        mine = inputs.astype(mx.int32)
        # What the others would go on with still has to be computed: their part of the step before.
        shared = mx.distributed.all_sum(mine if self._leads else mine * 0, group=self._of)
        if self._in_turn:  # ranks that have no first layer do not look at it, and would be waited for
            mx.eval(shared)
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
