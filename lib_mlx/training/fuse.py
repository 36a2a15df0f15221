"""An adapter put into its model: a model of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_mlx.engine import heap
from lib_mlx.engine.imports import import_on_worker
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import LoadCancelled
from lib_mlx.models import store
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.disk import check_new
from lib_mlx.models.upstream_vlm import import_mlx_vlm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.models.checkpoint import Checkpoint


def fuse(
    model_path: str,
    adapter_path: Path,
    output_path: Path,
    *,
    dequantize: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Path:
    """Write the model with the adapter in its weights to the new directory `output_path`. Blocks.

    Quantised weights are quantised again, as they were, unless `dequantize` is given.

    Args:
        model_path: a directory or a model of the store.
        adapter_path: a directory, as training writes it.
        output_path: must not exist.
        dequantize: leave no weight quantised.
        progress: told bytes written and in total.
        cancelled: asked before each part.

    Raises:
        ModelNotFound, CorruptModel: model or adapter are not there, or do not fit each other.
        InvalidArgument: `output_path` exists.
        LoadCancelled: `cancelled` said so; nothing is left.
    """
    check_new(output_path)
    checkpoint = inspect(store.resolve(model_path))
    import_on_worker("lib_mlx.models.upstream_tuner")
    if checkpoint.has_towers:
        import_mlx_vlm(checkpoint)
    worker = get_worker()
    try:
        return worker.run(_fuse, checkpoint, adapter_path, output_path, dequantize, progress, cancelled)
    finally:
        worker.run(heap.release)


def _fuse(
    checkpoint: Checkpoint,
    adapter_path: Path,
    output_path: Path,
    dequantize: bool,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> Path:
    from lib_mlx.engine.device import set_up
    from lib_mlx.models.adapters import fuse_adapter, load_adapter
    from lib_mlx.models.loader import load_network
    from lib_mlx.models.upstream_tuner import dequantize_model
    from lib_mlx.models.writing import write_model

    worker = get_worker()
    set_up()
    network, vision = load_network(checkpoint)
    load_adapter(network, adapter_path)
    fuse_adapter(network, dequantize=dequantize)
    network, apart = (vision.whole, vision.apart) if vision else (network, {})
    config = dict(checkpoint.config)
    if dequantize:
        dequantize_model(network)
        config = {key: value for key, value in config.items() if key not in {"quantization", "quantization_config"}}

    def between() -> None:
        worker.breathe()
        if cancelled():
            raise LoadCancelled("The fusing was cancelled.", hint="Start it again.")

    return write_model(network, config, checkpoint.path, output_path, apart=apart, progress=progress, between=between)
