"""What a model directory holds, read from its small files alone: no MLX, no code of the checkpoint is run."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import CorruptModel, ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from pathlib import Path

_MAX_HEADER = 100 << 20  # the safetensors specification's own limit
_TOWER = re.compile(r"(^|[._])(vision|visual|vit|audio|siglip|img_processor|image_encoder)[._]")


@dataclass(frozen=True)
class Checkpoint:
    """One model directory in Hugging Face layout, found complete."""

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    weight_bytes: int
    trusted: bool = False
    """Whether code that it brings may be run."""
    has_towers: bool = False
    """Whether there are weights of an encoder of images or sounds."""

    @property
    def model_type(self) -> str:
        """The architecture's name in mlx-lm's terms."""
        return str(self.config["model_type"])

    @property
    def context_length(self) -> int | None:
        """The longest sequence the model was made for, in tokens; None if the checkpoint does not say."""
        text = self.config.get("text_config") or {}
        for source in (self.config, text):
            for key in ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "seq_length"):
                value = source.get(key)
                if isinstance(value, int) and value > 0:
                    return value
        return None


def inspect(path: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Read and check the model directory at `path`; with `trust_remote_code` it may bring code of its own.

    Raises:
        ModelNotFound: there is no such directory, or no `config.json` in it.
        CorruptModel: a file is missing, truncated or not what its name says.
        UnsupportedModel: the checkpoint wants to run code of its own, or has no safetensors weights.
    """
    if not path.is_dir():
        raise ModelNotFound(f"There is no model directory at {path}.", hint="Check model_path.", param="model_path")
    if not (path / "config.json").is_file():
        raise ModelNotFound(
            f"{path} is not a model directory: it has no config.json.",
            hint="model_path must name a directory in Hugging Face or MLX layout.",
            param="model_path",
        )
    config = _read_object(path / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise CorruptModel(f"{path / 'config.json'} names no model_type.", hint="The checkpoint is incomplete.")
    if "model_file" in config and not trust_remote_code:
        raise UnsupportedModel(
            f"The checkpoint at {path} wants to run its own code ({config['model_file']!r}).",
            hint="Use a checkpoint of a built-in architecture, or set trust_remote_code if you trust its author.",
        )
    generation = path / "generation_config.json"
    headers = [_weight_header(file) for file in _weight_files(path)]
    return Checkpoint(
        path=path,
        config=config,
        generation_config=_read_object(generation) if generation.is_file() else {},
        weight_bytes=sum(stored for stored, _ in headers),
        trusted=trust_remote_code,
        has_towers=any(_TOWER.search(name) for _, names in headers for name in names),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorruptModel(f"{path} cannot be read: {error}.", hint="Fetch the model again.") from None
    if not isinstance(value, dict):
        raise CorruptModel(f"{path} is not a JSON object.", hint="Fetch the model again.")
    return value


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("model*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CorruptModel(f"{index} has no weight_map.", hint="Fetch the model again.")
        missing = sorted({str(name) for name in weight_map.values()} - {file.name for file in files})
        if missing:
            raise CorruptModel(f"{path} lacks the weight file {missing[0]}.", hint="Fetch the model again.")
    if not files:
        raise UnsupportedModel(
            f"{path} has no weights in safetensors format (model*.safetensors).",
            hint="Convert the checkpoint to safetensors; pickled weights are never loaded.",
        )
    return files


def _weight_header(path: Path) -> tuple[int, list[str]]:
    """Return the bytes and the names of the tensors in a safetensors file, having checked that all are there.

    MLX maps the file lazily and would read past its end (https://huggingface.co/docs/safetensors).
    """
    damaged = CorruptModel(f"The weight file {path} is truncated or damaged.", hint="Fetch the model again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise damaged
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER, size - 8):
            raise damaged
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise damaged from None
    stored = max(ends, default=0)
    if not isinstance(stored, int) or 8 + length + stored > size:
        raise damaged
    return stored, [*header]
