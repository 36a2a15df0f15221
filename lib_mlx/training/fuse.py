"""An adapter put into its model: a model of its own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lib_mlx.engine.worker import get_worker
from lib_mlx.models import store
from lib_mlx.models.checkpoint import inspect

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
) -> Path:
    """Write the model with the adapter in its weights to the new directory `output_path`. Blocks.

    Quantised weights are quantised again, as they were, unless `dequantize` is given.

    Raises:
        ModelNotFound, CorruptModel: model or adapter are not there, or do not fit each other.
        InvalidArgument: `output_path` exists.
    """
    checkpoint = inspect(store.resolve(model_path))
    worker = get_worker()
    worker.run(importlib.import_module, "lib_mlx.models.upstream_tuner")
    return worker.run(_fuse, checkpoint, adapter_path, output_path, dequantize, progress)


def _fuse(
    checkpoint: Checkpoint,
    adapter_path: Path,
    output_path: Path,
    dequantize: bool,
    progress: Callable[[int, int], None],
) -> Path:
    from mlx.utils import tree_unflatten

    from lib_mlx.engine.device import set_up
    from lib_mlx.models.adapters import load_adapter
    from lib_mlx.models.loader import load_text_network
    from lib_mlx.models.upstream_tuner import dequantize_model
    from lib_mlx.models.writing import write_model

    set_up()
    network = load_text_network(checkpoint)
    load_adapter(network, adapter_path)
    fused = [
        (name, module.fuse(dequantize=dequantize))
        for name, module in network.named_modules()
        if hasattr(module, "fuse")
    ]
    network.update_modules(tree_unflatten(fused))
    config = dict(checkpoint.config)
    if dequantize:
        dequantize_model(network)
        config = {key: value for key, value in config.items() if key not in {"quantization", "quantization_config"}}
    return write_model(network, config, checkpoint.path, output_path, progress=progress)
