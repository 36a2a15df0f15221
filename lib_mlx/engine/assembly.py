"""The parts of a model, put together: its network, what is kept of past requests, what reads images, its scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from lib_mlx import memory
from lib_mlx.engine import device
from lib_mlx.engine.mirror import leading
from lib_mlx.engine.scheduler import Scheduler
from lib_mlx.engine.speculating import speculation
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InsufficientMemory
from lib_mlx.generation import PixelBounds
from lib_mlx.models.loader import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.config import EngineConfig
    from lib_mlx.engine.media_encoder import MediaEncoder
    from lib_mlx.engine.prefix_store import PrefixStore
    from lib_mlx.engine.rank_channel import Followers
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer, Weights
    from lib_mlx.models.media_reader import MediaReader

_PREFIX_BYTES = 2 << 30  # of KV kept of past requests, if the machine has ten times as much memory
_IMAGE_BYTES = 256 << 20  # of features kept of past images, if the machine has fifty times as much memory
_IMAGE_SHARE = 8  # of what a limit leaves for caches, images get one part in so many


def new_weights(
    checkpoint: Checkpoint,
    progress: Callable[[float], None],
    cancelled: Callable[[], bool],
    config: EngineConfig,
) -> tuple[Weights, str | None]:
    """Load the weights, with what MLX computes with set right; see `load_weights`. Engine thread only.

    Returns also what was put in place of MLX's own BLAS.

    Raises:
        InsufficientMemory: the weights alone take more than `memory_limit_bytes`.
    """
    blas_name = device.set_up()

    weights = load_weights(
        checkpoint,
        progress,
        _breathing(cancelled),
        config.cpu_weights,
        config.kv_bits,
        lazy_encoders=config.lazy_encoders,
        adapter=adapter_of(config),
    )
    if config.memory_limit_bytes is not None and weights.nbytes >= config.memory_limit_bytes:
        raise InsufficientMemory(
            f"The weights take {weights.nbytes / 1e9:.2f} GB, the limit is {config.memory_limit_bytes / 1e9:.2f} GB.",
            hint="Raise memory_limit_bytes, set cpu_weights to 'quantized', or use a smaller model.",
            param="memory_limit_bytes",
        )
    return weights, blas_name


def _breathing(cancelled: Callable[[], bool]) -> Callable[[], bool]:
    """Return `cancelled`, during which other models' streams go on."""

    def breathe() -> bool:
        get_worker().breathe()
        return cancelled()

    return breathe


def adapter_of(config: EngineConfig) -> Path | None:
    """Return the directory of the adapter that a model begins with."""
    named = config.adapter_path
    return None if named is None else Path(config.adapters.get(named, named)).expanduser()


def new_store(checkpoint: Checkpoint, weights: Weights, config: EngineConfig) -> PrefixStore | None:
    """Return what keeps prompts across restarts, if that is wanted; raises InvalidArgument as `open_store` does."""
    if config.prefix_cache_path is None:
        return None
    from lib_mlx.engine.prefix_store import open_store

    adapter = adapter_of(config)
    changed = adapter and [(file.name, file.stat().st_mtime_ns) for file in sorted(adapter.iterdir())]
    return open_store(config.prefix_cache_path, checkpoint, weights.kind, weights.device, config.kv_bits, changed)


def new_media(
    checkpoint: Checkpoint, tokenizer: LoadedTokenizer, weights: Weights, config: EngineConfig
) -> tuple[MediaReader | None, MediaEncoder | None]:
    """Return what reads a request's images and sounds and what encodes them, of a model with encoders."""
    if weights.vision is None:
        return None, None
    from lib_mlx.engine.media_encoder import MediaEncoder
    from lib_mlx.models.media_reader import MediaReader

    bounds = PixelBounds(config.min_pixels, config.max_pixels)
    reader = MediaReader(checkpoint, tokenizer, weights.vision.placeholders, bounds)
    kept = config.image_cache_bytes
    if kept is None:
        kept = min(_IMAGE_BYTES, memory.total_bytes() // 50)
    if config.memory_limit_bytes is not None:
        kept = min(kept, (config.memory_limit_bytes - weights.nbytes) // _IMAGE_SHARE)
    encoder = MediaEncoder(weights.vision, reader, kept)
    encoder.loaded = not config.lazy_encoders
    return reader, encoder


def new_scheduler(
    checkpoint: Checkpoint,
    weights: Weights,
    eos: frozenset[int],
    config: EngineConfig,
    store: PrefixStore | None,
    encoder: MediaEncoder | None,
    cancelled: Callable[[], bool],
    ranks: Followers | None = None,
) -> Scheduler:
    """Return the lane of a model, with what `store` has kept. Engine thread only; raises as `speculation` does."""
    guesses = speculation(checkpoint, weights, config, _breathing(cancelled))
    prefix_bytes = config.prefix_cache_bytes
    if prefix_bytes is None:
        prefix_bytes = min(_PREFIX_BYTES, memory.total_bytes() // 10)
    kv_bytes = None
    if config.memory_limit_bytes is not None:
        kv_bytes = config.memory_limit_bytes - weights.nbytes - (encoder.features.max_bytes if encoder else 0)
        kv_bytes -= guesses.nbytes if guesses else 0
        prefix_bytes = min(prefix_bytes, kv_bytes)
    scheduler = Scheduler(
        weights.network,
        eos,
        weights.cache,
        prefill_rate=256 if mx.default_device() == mx.cpu else 4096,
        prefix_bytes=prefix_bytes,
        kv_bytes=kv_bytes,
        row=weights.cache.row + guesses.row if guesses else None,
        encoder=encoder,
        new_batch=leading(weights, ranks) if ranks else guesses.new_batch if guesses else None,
    )
    if store is not None:
        store.load(scheduler.prefixes)
    return scheduler
