"""Where models live, and finding one by name without any network.

Three places: any directory or `.gguf` file by its path; lib_mlx's own store, `models/NAME` under the data folder
(`LIB_MLX_DATA_DIR`, else the platform's, `~/.local/share/lib-mlx` or `~/Library/Application Support/lib-mlx`);
and the Hugging Face cache as it is (`HF_HUB_CACHE`, `HF_HOME`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import platformdirs

from lib_mlx.errors import ModelNotFound
from lib_mlx.models.catalog import CATALOG
from lib_mlx.models.disk import room_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class StoredModel:
    """A complete model on this machine."""

    name: str
    path: Path
    bytes: int
    """Of all its files."""
    source: Literal["store", "hub"]


def data_dir() -> Path:
    """Return the folder for lib_mlx's data; it may not exist yet."""
    override = os.environ.get("LIB_MLX_DATA_DIR")
    return Path(override) if override else platformdirs.user_data_path("lib-mlx", appauthor=False)


def models_dir() -> Path:
    """Return the store's folder; it may not exist yet."""
    return data_dir() / "models"


def resolve(
    name: str,
    revision: str | None = None,
    *,
    converts: bool = True,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Return the model directory `name` stands for. Never downloads; any thread.

    Args:
        name: a directory; a `.gguf` file, which is converted into the store at its first use; the name of a
            model in the store; a short name of the catalogue; or a Hugging Face repository `owner/name` whose
            files are in the cache.
        revision: branch, tag or commit of a Hugging Face repository.
        converts: False: a `.gguf` file that has not been converted is not found.
        progress: told bytes done and in total while a `.gguf` file is converted.
        cancelled: asked now and then while a `.gguf` file is converted.

    Raises:
        ModelNotFound: nothing of that name is on this machine; the hint says how to get it.
        CorruptModel, UnsupportedModel, LoadCancelled: from the conversion of a `.gguf` file.
    """
    path = _existing(name)
    if path and path.is_dir():
        return path.resolve()
    if path and path.suffix.lower() == ".gguf":
        return _converted(path, converts, progress, cancelled)
    found = in_store(name) or _imported(name, revision) or in_hub_cache(name, revision)
    if found is None and (entry := CATALOG.get(name)):
        found = in_hub_cache(entry.repo, revision)
    if found is None:
        raise _not_found(name)
    return found


def _existing(name: str) -> Path | None:
    """Return `name` as a path if there is something; a text that can be no path is simply not there."""
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL inside, the home of an unknown user
        return None


def _imported(name: str, revision: str | None) -> Path | None:
    from lib_mlx.models import content

    return content.find(name, revision)


def in_store(name: str) -> Path | None:
    """Return the directory of the store's model `name`, None if there is none."""
    path = models_dir() / name
    return path if _NAME.fullmatch(name) and is_complete(path) else None


def in_hub_cache(repo: str, revision: str | None = None) -> Path | None:
    """Return the snapshot of `repo` in the Hugging Face cache, None if it is not there in full."""
    if not _REPO.fullmatch(repo):
        return None
    folder = hub_cache() / ("models--" + repo.replace("/", "--"))
    wanted = revision or "main"
    if ".." in wanted.split("/"):
        return None
    try:
        commit = (folder / "refs" / wanted).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = wanted
    path = folder / "snapshots" / commit
    return path if commit and is_complete(path) else None


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


def remove(name: str) -> int:
    """Remove a model of the store; returns how many bytes that gave back. The Hugging Face cache is not touched.

    Raises:
        ModelNotFound: the store has none of that name.
    """
    from lib_mlx.models import content

    path = in_store(name)
    if path is None:
        return content.remove(name)
    freed = _size(path)
    going = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.rename(going)  # it is whole or not there
    shutil.rmtree(going)
    return freed


def list_models() -> list[StoredModel]:
    """Return the complete models of the store and of the Hugging Face cache, by name."""
    return sorted([*_stored(), *_listed(), *_cached()], key=lambda model: model.name.lower())


def _listed() -> Iterator[StoredModel]:
    from lib_mlx.models import content

    for manifest in content.manifests():
        if manifest.revision == content.MAIN and (path := content.find(manifest.name)):
            yield StoredModel(manifest.name, path, manifest.bytes, "store")


def _stored() -> Iterator[StoredModel]:
    for path in _folders(models_dir()):
        if in_store(path.name):
            yield StoredModel(path.name, path, _size(path), "store")


def _cached() -> Iterator[StoredModel]:
    for folder in _folders(hub_cache()):
        kind, _, name = folder.name.partition("--")
        repo = name.replace("--", "/", 1)
        if kind == "models" and (path := in_hub_cache(repo)):
            yield StoredModel(repo, path, _size(path), "hub")


def _folders(path: Path) -> list[Path]:
    try:
        return [child for child in path.iterdir() if child.is_dir()]
    except OSError:
        return []


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _converted(
    source: Path,
    converts: bool,
    progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Path:
    """Return the store's conversion of `source`, made now if the file is new or has changed."""
    from lib_mlx.models.gguf import convert_gguf

    stat = source.stat()
    identity = f"{source.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem).strip("-._") or "model"
    name = f"{stem[:100]}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    found = in_store(name)
    if found is None and not converts:
        raise ModelNotFound(
            f"{source.name} has not been converted yet.", hint="It is when it is first loaded.", param="model_path"
        )
    if found is not None:
        return found
    with room_on(models_dir()):
        return convert_gguf(source, models_dir() / name, progress, cancelled)


def _not_found(name: str) -> ModelNotFound:
    if name in CATALOG or _REPO.fullmatch(name):
        hint = f"Fetch it with `lib-mlx pull {name}`."
    else:
        short = ", ".join(f"`lib-mlx pull {known}`" for known in CATALOG)
        hint = f"Give a directory, a .gguf file or a Hugging Face repository, or fetch a model with {short}."
    return ModelNotFound(f"There is no model {name!r} on this machine.", hint=hint, param="model_path")
