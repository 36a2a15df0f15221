"""A GUI-Actor checkpoint with its language model quantised. Engine thread, or a process of its own."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx

from lib_mlx.errors import InvalidArgument
from lib_mlx.grounding.interface import is_pointer_model, tensor_files
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.disk import staged_folder
from lib_mlx.models.writing import save_arrays

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GROUP_SIZE = 32
"""Weights that share a scale; divides every usual width."""


def quantize_checkpoint(
    source: Path,
    target: Path,
    bits: Literal[4, 8],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    between: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint at `source` to `target` with its language model's matrices quantised. Blocks.

    The vision tower and the pointer head stay as they are: a patch that is a little off is another patch.

    Args:
        source: a GUI-Actor in full precision.
        target: must not exist.
        bits: of a weight.
        progress: told bytes read and in total.
        between: called before each file; what it raises ends the work, and leaves nothing.

    Raises:
        InvalidArgument: the checkpoint is no GUI-Actor or quantised already, or `target` exists.
        DiskFull: there is no room for it.
    """
    checkpoint = inspect(source)
    files = tensor_files(source)
    if not is_pointer_model(checkpoint.config, files) or "quantization" in checkpoint.config:
        raise InvalidArgument(
            f"{source} is no GUI-Actor, or is quantised already.", hint="Give a GUI-Actor in full precision."
        )
    names = sorted(set(files.values()))
    total, done = sum(file.stat().st_size for file in names), 0
    with staged_folder(target) as staged:
        ignored = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json")
        shutil.copytree(source, staged, ignore=ignored, dirs_exist_ok=True)
        weight_map: dict[str, str] = {}
        for file in names:
            between()
            tensors: Any = mx.load(str(file))
            written = _quantized(tensors, bits)
            save_arrays(staged / file.name, written, {"format": "mlx"})
            weight_map |= dict.fromkeys(written, file.name)
            done += file.stat().st_size
            progress(done, total)
        (staged / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        how = {"group_size": GROUP_SIZE, "bits": bits, "mode": "affine"}
        config = {**checkpoint.config, "quantization": how, "quantization_config": how}
        (staged / "config.json").write_text(json.dumps(config, indent=2))
    return target


def _quantized(tensors: dict[str, mx.array], bits: int) -> dict[str, mx.array]:
    written: dict[str, mx.array] = {}
    for name, value in tensors.items():
        language = name.startswith(("model.", "lm_head.", "language_model."))
        if language and name.endswith(".weight") and value.ndim == 2 and value.shape[-1] % GROUP_SIZE == 0:
            stem = name.removesuffix(".weight")
            parts = mx.quantize(value, group_size=GROUP_SIZE, bits=bits)
            written |= {
                f"{stem}.{part}": array for part, array in zip(("weight", "scales", "biases"), parts, strict=True)
            }
        else:
            written[name] = value
    return written
