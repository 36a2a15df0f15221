"""Writing a network as a model directory: in parts, resumable, whole or not at all. Engine thread only."""

from __future__ import annotations

import hashlib
import json
import shutil
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from lib_mlx.models.disk import staged_file, staged_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


PART_BYTES = 4 << 30  # the most that one file holds
_INDEX = "model.safetensors.index.json"


def write_model(
    network: Any,
    config: dict[str, Any],
    source: Path,
    target: Path,
    *,
    key: str = "",
    apart: Mapping[str, mx.array] = MappingProxyType({}),
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    between: Callable[[], None] = lambda: None,
) -> Path:
    """Write `network` to the new directory `target`; returns it. Its arrays are evaluated part by part, and freed.

    Args:
        network: it is of no use afterwards.
        config: for config.json.
        source: where the tokenizer and the other files are copied from.
        target: must not exist.
        key: what the result depends on beside the weights' names and shapes. Parts that were written for the same are
            gone on with; without a key nothing is, and what fails leaves nothing.
        apart: arrays that are written with those of the network, by name.
        progress: told bytes written and in total.
        between: called before each part; what it raises ends the work.

    Raises:
        InvalidArgument: `target` exists, cannot be made, or is being written by another process.
        DiskFull: there is no room for it.
    """
    arrays: list[tuple[str, mx.array]] = sorted([*cast("Any", tree_flatten(network.parameters())), *apart.items()])
    sizes = {name: array.nbytes for name, array in arrays}
    total, done = sum(sizes.values()), 0
    parts = list(_parts(sizes, PART_BYTES))
    identity = f"{key}\0{[(name, array.shape, str(array.dtype)) for name, array in arrays]}\0{parts}"
    with staged_folder(target, hashlib.sha256(identity.encode()).hexdigest() if key else "") as staged:
        network.clear()  # the arrays are freed when they are written
        left = dict(arrays)
        del arrays
        for number, names in enumerate(parts, 1):
            between()
            _write_part(staged / _part_name(number, len(parts)), {name: left.pop(name) for name in names})
            done += sum(sizes[name] for name in names)
            progress(done, total)
        _copy_rest(source, staged)
        _finish(staged, config, parts, sizes)
    return target


def save_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; raises OSError if it cannot be."""
    # Through Python's file: what goes wrong with MLX's own is a RuntimeError that does not say why.
    with staged_file(path) as staged, staged.open("wb") as file:
        mx.save_safetensors(cast("Any", file), arrays, metadata)


def _parts(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    part: list[str] = []
    taken = 0
    for name, size in sizes.items():
        if part and taken + size > limit:
            yield part
            part, taken = [], 0
        part.append(name)
        taken += size
    if part:
        yield part


def _part_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_part(path: Path, arrays: dict[str, mx.array]) -> None:
    if path.exists():  # it was renamed when it was whole
        return
    save_arrays(path, arrays, {"format": "mlx"})


def _copy_rest(source: Path, staged: Path) -> None:
    """Copy what is neither weights nor config: tokenizer, templates, licences."""
    for file in source.iterdir():
        weights = file.suffix in {".safetensors", ".gguf", ".bin", ".pt", ".pth"} or file.name == _INDEX
        if file.is_file() and not weights and file.name != "config.json" and not file.name.startswith("."):
            shutil.copyfile(file, staged / file.name)


def _finish(staged: Path, config: dict[str, Any], parts: list[list[str]], sizes: dict[str, int]) -> None:
    if len(parts) > 1:
        places = {name: _part_name(number, len(parts)) for number, names in enumerate(parts, 1) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (staged / _INDEX).write_text(json.dumps(index, indent=2))
    (staged / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
