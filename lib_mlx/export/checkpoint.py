"""From a GUI-Actor's directory to ONNX files. Engine thread only: MLX reads the tensors, whatever type they have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from lib_mlx.errors import CorruptModel, UnsupportedModel
from lib_mlx.export.pointer import export_pointer_head
from lib_mlx.export.vision_tower import export_vision_tower
from lib_mlx.grounding.interface import HEAD_PREFIX, SYSTEM_PROMPTS, is_pointer_model, tensor_files
from lib_mlx.models.checkpoint import inspect

if TYPE_CHECKING:
    from pathlib import Path

_TOWERS = ("visual.", "vision_tower.", "model.visual.")


def export_onnx(source: Path, target: Path) -> list[Path]:
    """Write `vision_tower.onnx` and `pointer_head.onnx` of the checkpoint at `source` to the folder `target`. Blocks.

    Raises:
        UnsupportedModel: it is no GUI-Actor on Qwen2-VL or Qwen2.5-VL, or its vision tower is quantised.
        CorruptModel: a tensor is missing.
        UnsupportedFeature: the package onnx is not installed.
    """
    checkpoint = inspect(source)
    files = tensor_files(source)
    if not is_pointer_model(checkpoint.config, files) or checkpoint.model_type not in SYSTEM_PROMPTS:
        raise UnsupportedModel(
            f"{source} is no GUI-Actor on {' or '.join(SYSTEM_PROMPTS)}.", hint="Others cannot be exported."
        )
    tower, head = _read(files, _TOWERS), _read(files, (HEAD_PREFIX,))
    if any(name.endswith(".scales") for name in tower):
        raise UnsupportedModel(f"The vision tower of {source} is quantised.", hint="Export the original checkpoint.")
    embedding = tower.get("patch_embed.proj.weight")
    if embedding is not None and embedding.shape[-1] == 3:  # as MLX has it: colours last
        tower["patch_embed.proj.weight"] = np.moveaxis(embedding, -1, 1)
    target.mkdir(parents=True, exist_ok=True)
    try:
        return [
            export_vision_tower(checkpoint.config, tower, target / "vision_tower.onnx"),
            export_pointer_head(head, target / "pointer_head.onnx"),
        ]
    except KeyError as error:
        raise CorruptModel(f"{source} lacks {error}.", hint="Fetch the model again.") from error


def _read(files: dict[str, Path], prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the tensors below the prefixes, in float32."""
    found: dict[str, np.ndarray] = {}
    wanted = {name: file for name, file in files.items() if name.startswith(prefixes)}
    for file in sorted(set(wanted.values())):
        tensors: Any = mx.load(str(file))
        for name in (name for name, where in wanted.items() if where == file):
            short = next(name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix))
            found[short] = np.array(tensors[name].astype(mx.float32))
    return found
