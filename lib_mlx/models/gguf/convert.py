"""One GGUF file to one MLX model directory."""

from __future__ import annotations

import collections
import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import LoadCancelled
from lib_mlx.models.disk import check_new
from lib_mlx.models.gguf.architectures import Plan
from lib_mlx.models.gguf.file import GgufFile, corrupt
from lib_mlx.models.gguf.safetensors import SafetensorsWriter
from lib_mlx.models.gguf.tensors import GROUP_SIZE, Quantized, decode, shorten, widen
from lib_mlx.models.gguf.tokenizer import TokenizerFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lib_mlx.models.gguf.architectures import Target
    from lib_mlx.models.gguf.file import Tensor
    from lib_mlx.models.gguf.tensors import Array


def convert_gguf(
    source: Path,
    target: Path,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Write the model in the GGUF file `source` to the new directory `target`; return `target`.

    No number of the weights changes: Q4_0, Q4_1 and Q8_0 stay quantised, F16, BF16 and F32 stay as they are
    (vectors become float16 where that is exact). NumPy does the work, not MLX: any thread may call it. The
    directory appears complete or not at all.

    Args:
        source: a `.gguf` file, one part of one.
        target: must not exist; its parent is made if need be.
        progress: told the bytes of tensors converted and their total, after each tensor.
        cancelled: asked before each tensor.

    Raises:
        ModelNotFound: there is no `source`.
        CorruptModel: `source` is damaged or truncated.
        UnsupportedModel: its architecture, tokenizer or a tensor type has no lossless counterpart in MLX.
        InvalidArgument: `target` exists.
        LoadCancelled: `cancelled` said so.
    """
    check_new(target)
    with GgufFile(source) as file:
        try:
            plan = Plan(file)
            tokenizer = TokenizerFiles(source, file.metadata)
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:  # metadata comes in any type
            raise corrupt(source, f"its metadata makes no sense ({error})") from error
        target.parent.mkdir(parents=True, exist_ok=True)
        with _appearing(target) as directory:
            bits = _write_weights(file, plan, directory, progress, cancelled)
            _write_configs(directory, plan.config, bits, tokenizer)
    return target


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Give a temporary directory beside `target` that becomes `target` on success and vanishes otherwise."""
    directory = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        directory.chmod(0o755)
        yield directory
        try:
            directory.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # else another process has just put the same model there
                raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _write_weights(
    file: GgufFile,
    plan: Plan,
    directory: Path,
    progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> dict[str, int]:
    """Write model.safetensors; return the bits of each quantised module."""
    bits: dict[str, int] = {}
    total = sum(file.tensors[name].nbytes for name in plan.targets)
    done = 0
    kind = _activation_type(file)
    names = [f"{target.module}.{part}" for target in plan.targets.values() for part in ("weight", "scales", "biases")]
    with SafetensorsWriter(directory / "model.safetensors", names) as writer:
        for name, target in plan.targets.items():
            if cancelled and cancelled():
                raise LoadCancelled("The conversion was cancelled.", hint="Load the model again when it is wanted.")
            tensor = file.tensors[name]
            for key, array in _converted(tensor, file.data(tensor), target, kind).items():
                writer.add(key, array)
                if key.endswith(".scales"):
                    bits[target.module] = 8 if tensor.type == "Q8_0" else 4
            done += tensor.nbytes
            if progress:
                progress(done, total)
    return bits


def _activation_type(file: GgufFile) -> str:
    """Return the type the model computes in: that of its matrices; quantised ones have float16 scales."""
    matrices = collections.Counter(
        tensor.type if tensor.type in ("F32", "BF16") else "F16"
        for tensor in file.tensors.values()
        if len(tensor.shape) > 1
    )
    return matrices.most_common(1)[0][0] if matrices else "F32"


def _converted(tensor: Tensor, data: bytes, target: Target, kind: str) -> dict[str, Array]:
    decoded = decode(tensor, data, target.rows)
    if isinstance(decoded, Quantized):
        return {
            f"{target.module}.weight": decoded.weight,
            f"{target.module}.scales": decoded.scales,
            f"{target.module}.biases": decoded.biases,
        }
    if target.subtract_one:
        decoded = widen(decoded) - np.float32(1)
    return {target.name: shorten(decoded, kind) if decoded.ndim == 1 else decoded}


def _write_configs(directory: Path, config: dict[str, Any], bits: dict[str, int], tokenizer: TokenizerFiles) -> None:
    if bits:
        usual = collections.Counter(bits.values()).most_common(1)[0][0]
        config["quantization"] = {
            "group_size": GROUP_SIZE,
            "bits": usual,
            **{module: {"group_size": GROUP_SIZE, "bits": width} for module, width in bits.items() if width != usual},
        }
    config["bos_token_id"] = tokenizer.bos
    config["eos_token_id"] = tokenizer.ends[0] if len(tokenizer.ends) == 1 else tokenizer.ends
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.ends},
        "tokenizer.json": tokenizer.tokenizer,
        "tokenizer_config.json": tokenizer.config | {"model_max_length": config["max_position_embeddings"]},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
