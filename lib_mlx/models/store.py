"""Where models live, and finding one by name without any network.

Three places: any directory or `.gguf` file by its path; lib_mlx's own store (`models.content`) under the data folder
(`LIB_MLX_DATA_DIR`, else the platform's, `~/.local/share/lib-mlx` or `~/Library/Application Support/lib-mlx`);
and the Hugging Face cache as it is (`HF_HUB_CACHE`, `HF_HOME`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lib_mlx.errors import ModelNotFound
from lib_mlx.models import content
from lib_mlx.models.catalog import CATALOG
from lib_mlx.models.disk import room_on
from lib_mlx.models.folders import data_dir, hub_cache, is_complete

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class StoredModel:
    """A complete model on this machine."""

    name: str
    path: Path
    bytes: int
    """Of all its files."""
    source: Literal["store", "hub"]


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
    found = content.find(name, revision) or in_hub_cache(name, revision)
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


def list_models() -> list[StoredModel]:
    """Return the complete models of the store and of the Hugging Face cache, by name."""
    return sorted([*_stored(), *_cached()], key=lambda model: model.name.lower())


def _stored() -> Iterator[StoredModel]:
    for manifest in content.manifests():
        if manifest.revision == content.MAIN and (path := content.find(manifest.name)):
            yield StoredModel(manifest.name, path, manifest.bytes, "store")


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
    found = content.find(name)
    if found is None and not converts:
        raise ModelNotFound(
            f"{source.name} has not been converted yet.", hint="It is when it is first loaded.", param="model_path"
        )
    if found is not None:
        return found
    with room_on(data_dir()), content.staging() as staged:
        return content.import_model(convert_gguf(source, staged / name, progress, cancelled), name, own=True)


def _not_found(name: str) -> ModelNotFound:
    if name in CATALOG or _REPO.fullmatch(name):
        hint = f"Fetch it with `lib-mlx pull {name}`."
    else:
        short = ", ".join(f"`lib-mlx pull {known}`" for known in CATALOG)
        hint = f"Give a directory, a .gguf file or a Hugging Face repository, or fetch a model with {short}."
    return ModelNotFound(f"There is no model {name!r} on this machine.", hint=hint, param="model_path")
