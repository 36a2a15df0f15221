"""Where lib_mlx's data and the Hugging Face cache lie, and what a model's directory must hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import platformdirs


def data_dir() -> Path:
    """Return the folder for lib_mlx's data; it may not exist yet."""
    override = os.environ.get("LIB_MLX_DATA_DIR")
    return Path(override) if override else platformdirs.user_data_path("lib-mlx", appauthor=False)


def hub_cache() -> Path:
    """Return the Hugging Face cache's folder, as huggingface_hub documents it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def is_complete(path: Path) -> bool:
    """Tell whether `path` is a model directory with a config, a tokenizer and every weight file it names."""
    try:
        if not (path / "config.json").is_file():
            return False
        if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return False
        index = path / "model.safetensors.index.json"
        if not index.is_file():
            return any(file.is_file() for file in path.glob("model*.safetensors"))
        files = set(json.loads(index.read_bytes())["weight_map"].values())
        return all((path / file).is_file() for file in files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
