"""A GUI-Actor checkpoint with its language model quantised. Engine thread, or a process of its own."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx

from lib_mlx.errors import InvalidArgument
from lib_mlx.grounding.interface import is_pointer_model, tensor_files
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.disk import room_on
from lib_mlx.models.writing import save_arrays

if TYPE_CHECKING:
    from pathlib import Path

GROUP_SIZE = 32
"""Weights that share a scale; divides every usual width."""


def quantize_checkpoint(source: Path, target: Path, bits: Literal[4, 8]) -> Path:
    """Write the checkpoint at `source` to `target` with its language model's matrices quantised. Blocks.

    The vision tower and the pointer head stay as they are: a patch that is a little off is another patch.

    Raises:
        InvalidArgument: the checkpoint is no GUI-Actor or quantised already, or `target` exists.
    """
    checkpoint = inspect(source)
    files = tensor_files(source)
    if not is_pointer_model(checkpoint.config, files) or "quantization" in checkpoint.config:
        raise InvalidArgument(
            f"{source} is no GUI-Actor, or is quantised already.", hint="Give a GUI-Actor in full precision."
        )
    if target.exists():
        raise InvalidArgument(f"{target} exists already.", hint="Name a new directory.")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with room_on(target.parent), contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, partial, ignore_errors=True)
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
        weight_map: dict[str, str] = {}
        for file in sorted(set(files.values())):
            tensors: Any = mx.load(str(file))
            written = _quantized(tensors, bits)
            save_arrays(partial / file.name, written, {"format": "mlx"})
            weight_map |= dict.fromkeys(written, file.name)
        (partial / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        how = {"group_size": GROUP_SIZE, "bits": bits, "mode": "affine"}
        config = {**checkpoint.config, "quantization": how, "quantization_config": how}
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        partial.rename(target)
        undo.pop_all()
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
