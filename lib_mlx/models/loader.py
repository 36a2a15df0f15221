"""From a model directory to a model in memory.

The tokenizer is read on the calling thread while the engine thread maps and evaluates the weights: MLX arrays
belong to the thread that made them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import CorruptModel, LibMlxError, LoadCancelled, UnsupportedFeature, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import mlx.core as mx
    from mlx.nn.layers.base import Module
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from lib_mlx.config import CpuWeights
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.kv_cache import CacheKind
    from lib_mlx.models.vision_network import VisionNetwork
    from lib_mlx.status import Device, WeightKind

_EVAL_BYTES = 64 << 20  # weights read between two looks at the cancel flag


@dataclass(frozen=True)
class Weights:
    """The network, evaluated. Only the engine thread may touch it."""

    network: Module
    vocab_size: int
    """The width of the logits: any token id must be below it."""
    device: Device
    kind: WeightKind
    cache: CacheKind
    nbytes: int
    """What they take in memory, those of encoders that come later included."""
    vision: VisionNetwork | None = None
    """The network again, if it reads images."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """A checkpoint's tokenizer. Hugging Face's fast tokenizers are not thread-safe: hold `lock` around calls."""

    wrapper: TokenizerWrapper
    lock: threading.Lock = field(default_factory=threading.Lock)


def load_weights(
    checkpoint: Checkpoint,
    progress: Callable[[float], None],
    cancelled: Callable[[], bool],
    cpu_weights: CpuWeights = "auto",
    kv_bits: int | None = None,
    *,
    lazy_encoders: bool = True,
    adapter: Path | None = None,
) -> Weights:
    """Map the weights and evaluate them, then run one token to see what comes out. Engine thread only.

    Args:
        checkpoint: the directory, inspected.
        progress: told the fraction of the weights that is in memory.
        cancelled: asked between slices of about 64 MiB.
        cpu_weights: how to keep the weights where MLX runs on the CPU; see `LoadConfig`.
        kv_bits: quantise the cache's keys and values to so many bits.
        lazy_encoders: read the weights of encoders at their first use.
        adapter: the directory of an adapter.

    Raises:
        UnsupportedFeature: the cache cannot be quantised.
        LoadCancelled: `cancelled` said so.
        UnsupportedModel: neither mlx-lm nor mlx-vlm knows the architecture.
        CorruptModel: the weights do not fit the architecture.
    """
    import mlx.core as mx

    from lib_mlx.models import sharding
    from lib_mlx.models.adapters import load_adapter
    from lib_mlx.models.cpu_weights import prepare_for_cpu, weight_kind

    try:
        network, vision = _read_network(checkpoint)
        if adapter is not None:
            load_adapter(network, adapter)
    except LibMlxError:
        raise
    except Exception as error:  # mlx-lm raises whatever Python raises for a checkpoint it cannot read
        raise _load_error(checkpoint, error) from error
    try:
        device: Device = "cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu"
        done = 0.0
        language = vision.language if vision else network
        if device == "cpu" and sharding.group() is not None:
            network.set_dtype(mx.float32)  # half precision is slower; our own layers know nothing of ranks
        elif device == "cpu":
            done = prepare_for_cpu(language, cpu_weights, progress, lambda: check_cancelled(cancelled))
            if vision:
                vision.widen_towers()
        _evaluate(_arrays(language), lambda part: progress(max(done, part)), cancelled)
        if vision and not lazy_encoders:
            _evaluate(vision.towers(), lambda _: None, cancelled)
        width, cache = _first_token(network, kv_bits)
        nbytes = sum(array.nbytes for array in [*_arrays(language), *(vision.towers() if vision else ())])
        return Weights(network, width, device, weight_kind(language), cache, nbytes, vision)
    except LibMlxError:
        raise
    except Exception as error:
        raise CorruptModel(
            f"The weights of {checkpoint.path} do not work: {error}.", hint="Fetch or convert the model again."
        ) from error


def load_text_network(checkpoint: Checkpoint) -> Any:
    """Return mlx-lm's network, neither evaluated nor made ready to serve, for what trains or writes weights.

    Engine thread only.

    Raises:
        UnsupportedFeature: the checkpoint has encoders, which mlx-lm leaves out without a word.
        UnsupportedModel, CorruptModel: as `load_weights`.
    """
    from lib_mlx.models.upstream import load_model

    if checkpoint.has_towers:
        raise UnsupportedFeature(
            f"{checkpoint.path.name!r} has encoders, and this is for models of text alone.",
            hint="Use another model.",
            param="model_path",
        )
    try:
        return load_model(checkpoint.path, lazy=True, trust_remote_code=checkpoint.trusted)[0]
    except Exception as error:  # mlx-lm raises whatever Python raises for a checkpoint it cannot read
        raise _load_error(checkpoint, error) from error


def load_network(checkpoint: Checkpoint) -> tuple[Any, VisionNetwork | None]:
    """Return the network, neither evaluated nor made ready to serve; as second the same again if it has encoders.

    Engine thread only.

    Raises:
        UnsupportedModel, CorruptModel: as `load_weights`.
    """
    try:
        return _read_network(checkpoint)
    except LibMlxError:
        raise
    except Exception as error:  # mlx-vlm raises whatever Python raises for a checkpoint it cannot read
        raise _load_error(checkpoint, error) from error


def _read_network(checkpoint: Checkpoint) -> tuple[Any, VisionNetwork | None]:
    if checkpoint.has_towers:
        from lib_mlx.models import vision_network

        vision = vision_network.load_network(checkpoint)
        return vision, vision
    from lib_mlx.models import sharding

    network = load_text_network(checkpoint)
    return (network if sharding.group() is None else sharding.divide(network, checkpoint)), None


def _load_error(checkpoint: Checkpoint, error: Exception) -> LibMlxError:
    if isinstance(error, ValueError) and "not supported" in str(error):
        return UnsupportedModel(
            f"The architecture {checkpoint.model_type!r} is not supported.",
            hint="mlx-lm lists what it supports; vision models need the extra lib-mlx[vision].",
        )
    detail = str(error).split("\n", 1)[0][:300]
    return CorruptModel(
        f"The checkpoint at {checkpoint.path} cannot be loaded: {type(error).__name__}: {detail}.",
        hint="Its config.json and weights do not fit together; fetch or convert the model again.",
    )


def _evaluate(arrays: list[mx.array], progress: Callable[[float], None], cancelled: Callable[[], bool]) -> None:
    import mlx.core as mx

    total = sum(array.nbytes for array in arrays) or 1
    done = pending = 0
    batch = []
    for array in arrays:
        batch.append(array)
        pending += array.nbytes
        if pending >= _EVAL_BYTES or array is arrays[-1]:
            check_cancelled(cancelled)
            mx.eval(batch)
            done, pending, batch = done + pending, 0, []
            progress(done / total)


def _arrays(network: Module) -> list[mx.array]:
    from mlx.utils import tree_flatten

    parameters: Any = tree_flatten(network.parameters())  # type: ignore[no-untyped-call]
    return [array for _, array in parameters]


def _first_token(network: Module, kv_bits: int | None) -> tuple[int, CacheKind]:
    """Run one token and return the width of the logits and what the cache is like.

    It also compiles kernels and touches every weight before the first request waits for that.
    """
    import mlx.core as mx

    from lib_mlx.models.kv_cache import cache_kind, cannot_quantise, new_cache

    cache = new_cache(network, kv_bits)
    try:
        logits = network(mx.array([[0]]), cache=cache)
    except ValueError as error:
        if kv_bits is None:
            raise
        raise cannot_quantise(kv_bits) from error
    mx.eval(logits)
    return int(logits.shape[-1]), cache_kind(cache, kv_bits)


def check_cancelled(cancelled: Callable[[], bool]) -> None:
    """Raise `LoadCancelled` if `cancelled` says so."""
    if cancelled():
        raise LoadCancelled("The load was cancelled.", hint="Load the model again when it is wanted.")


def load_tokenizer(checkpoint: Checkpoint) -> LoadedTokenizer:
    """Read the tokenizer, its chat template and its markers. Any thread; no MLX.

    Raises:
        CorruptModel: the tokenizer's files are missing or damaged.
        UnsupportedModel: it wants to run code of its own.
    """
    from lib_mlx.models import upstream
    from lib_mlx.models.deferred import importing
    from lib_mlx.models.tokenizer import read_tokenizer

    # Without this answer transformers asks on the host's terminal whether to run a checkpoint's code.
    extra: dict[str, Any] = {"trust_remote_code": checkpoint.trusted, "local_files_only": True}
    try:
        eos, light = _eos_ids(checkpoint), read_tokenizer(checkpoint.path, checkpoint.config)
        if light is not None:
            tokenizer, config = light
            wrapper = upstream.wrap_tokenizer(tokenizer, eos, config.get("tool_parser_type"))
        else:
            with importing:
                wrapper = upstream.load_tokenizer(checkpoint.path, extra, eos_token_ids=eos)
    except Exception as error:
        detail = str(error).split("\n", 1)[0][:300]
        if "trust_remote_code" in str(error):
            raise UnsupportedModel(
                f"The tokenizer of {checkpoint.path} wants to run code of its own.",
                hint="Use a checkpoint with a tokenizer.json, or set trust_remote_code if you trust its author.",
            ) from error
        raise CorruptModel(
            f"The tokenizer of {checkpoint.path} cannot be loaded: {detail}.", hint="Fetch the model again."
        ) from error
    return LoadedTokenizer(wrapper)


def _eos_ids(checkpoint: Checkpoint) -> list[int] | None:
    """Return the end tokens; generation_config.json goes before config.json, as in transformers."""
    for source in (checkpoint.generation_config, checkpoint.config, checkpoint.config.get("text_config") or {}):
        value = source.get("eos_token_id")
        if isinstance(value, int):
            return [value]
        if isinstance(value, list) and value:
            return [int(item) for item in value]
    return None
