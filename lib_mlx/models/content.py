"""The store: models that were pulled, converted or imported; each file once, whatever models it belongs to.

```
blobs/sha256-…              files, by what is in them
manifests/NAME/REVISION.json    a model: its files' names, sums and sizes; the truth
views/…                     a manifest as a directory, of hard links to blobs; made when it is missing
staging/…                   models that are being made
```

A manifest is written last and removed first: whatever crashes in between leaves blobs and views that nobody refers to,
which the next change sweeps away. Changes hold a lock of the file system, so that processes do not meet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import CorruptModel, InvalidArgument, ModelNotFound
from lib_mlx.models.disk import room_on
from lib_mlx.models.folders import data_dir, is_complete

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import filelock

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}(/[A-Za-z0-9][A-Za-z0-9._-]{0,200})?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_CHUNK = 1 << 22
MAIN = "main"


@dataclass(frozen=True)
class Blob:
    """One file of a model."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """A model: its files, by their names in its directory."""

    name: str
    revision: str
    files: dict[str, Blob]

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(blob.size for blob in self.files.values())

    @property
    def digest(self) -> str:
        """Of the whole."""
        return hashlib.sha256(_encode(self)).hexdigest()


def blobs_dir() -> Path:
    """Return the folder of files."""
    return data_dir() / "blobs"


def manifests_dir() -> Path:
    """Return the folder of models."""
    return data_dir() / "manifests"


def views_dir() -> Path:
    """Return the folder of models' directories."""
    return data_dir() / "views"


def import_model(
    source: Path,
    name: str,
    *,
    revision: str = MAIN,
    own: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Take the model directory `source` into the store as `name`; returns its directory there. Blocks.

    Files are cloned or hard-linked where the file system can, else copied; what is there already is not taken again.
    With `own` the directory is ours, in the data folder: its files are moved.

    Raises:
        InvalidArgument: that is no name, or no complete model directory.
        DiskFull: there is no room for it; nothing stays.
    """
    _check_name(name, revision)
    if not is_complete(source):
        raise InvalidArgument(
            f"{source} is no complete model directory.",
            hint="It needs config.json, a tokenizer and every safetensors file.",
        )
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    total, done = sum(path.stat().st_size for path in files), 0
    with room_on(data_dir()), _locked():
        try:
            entries: dict[str, Blob] = {}
            for path in files:
                blob = _take(path, own=own, progress=partial(_report, progress, done, total))
                entries[str(path.relative_to(source))] = blob
                done += blob.size
            manifest = Manifest(name, revision, entries)
            _write(_manifest_path(name, revision), _encode(manifest))
        finally:
            _sweep()
        return _view(manifest)


def _report(progress: Callable[[int, int], None], before: int, total: int, read: int) -> None:
    progress(before + read, total)


@contextlib.contextmanager
def staging() -> Iterator[Path]:
    """Give a directory in the data folder to make a model in; it and what is left in it go at the end.

    Its lock tells it from those of killed processes, which the next change of the store removes.
    """
    import filelock

    with _locked():
        _staging_dir().mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=_staging_dir()))
        lock = filelock.FileLock(_lock_path(staged))
        lock.acquire()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        lock.release()
        _lock_path(staged).unlink(missing_ok=True)


def _sweep_staging() -> None:
    import filelock

    for staged in _entries(_staging_dir()):
        if staged.is_dir():
            with contextlib.suppress(filelock.Timeout), filelock.FileLock(_lock_path(staged), timeout=0):
                shutil.rmtree(staged, ignore_errors=True)
                _lock_path(staged).unlink(missing_ok=True)


def _staging_dir() -> Path:
    return data_dir() / "staging"


def _lock_path(staged: Path) -> Path:
    return staged.with_name(f"{staged.name}.lock")


def find(name: str, revision: str | None = None) -> Path | None:
    """Return the directory of the model `name`, None if there is none."""
    manifest = read_manifest(name, revision or MAIN)
    if manifest is None:
        return None
    view = _view_path(manifest)
    if view.is_dir():
        return view
    with _locked():
        return _view(manifest)


def read_manifest(name: str, revision: str = MAIN) -> Manifest | None:
    """Return a model's manifest, None if there is none that can be read."""
    if not _NAME.fullmatch(name) or not _REVISION.fullmatch(revision):
        return None
    try:
        values = json.loads(_manifest_path(name, revision).read_bytes())
        return Manifest(
            values["name"], values["revision"], {file: Blob(**blob) for file, blob in values["files"].items()}
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def manifests() -> Iterator[Manifest]:
    """Yield every model, by name and revision."""
    for path in sorted(manifests_dir().glob("**/*.json")):
        name = str(path.parent.relative_to(manifests_dir()))
        if (manifest := read_manifest(name, path.stem)) is not None:
            yield manifest


def remove(name: str, revision: str = MAIN) -> int:
    """Remove a model, and the files that no other one has. Returns how many bytes that gave back.

    Raises:
        ModelNotFound: there is none.
    """
    with _locked():
        path = _manifest_path(name, revision) if _NAME.fullmatch(name) and _REVISION.fullmatch(revision) else None
        if path is None or not path.is_file():
            raise ModelNotFound(f"The store has no model {name!r}.", hint="`lib-mlx list` shows what there is.")
        path.unlink()
        for folder in (path.parent, path.parent.parent):
            with contextlib.suppress(OSError):
                if folder != manifests_dir():
                    folder.rmdir()
        return _sweep()


def verify(progress: Callable[[str], None] = lambda _name: None) -> list[str]:
    """Return what is wrong in the store: every file is read. What a crash left behind is not wrong, but swept away."""
    with _locked():
        _sweep()
        faults = [
            f"{path.relative_to(manifests_dir())}: the manifest cannot be read"
            for path in sorted(manifests_dir().glob("**/*.json"))
            if read_manifest(str(path.parent.relative_to(manifests_dir())), path.stem) is None
        ]
        known: dict[str, str] = {}
        for manifest in manifests():
            progress(manifest.name)
            for file, blob in manifest.files.items():
                if blob.sha256 not in known:
                    known[blob.sha256] = _fault(blob)
                if known[blob.sha256]:
                    faults.append(f"{manifest.name}: {file} {known[blob.sha256]}")
        return faults


def _fault(blob: Blob) -> str:
    path = _blob_path(blob.sha256)
    if not path.is_file():
        return "is missing"
    return "" if _sum(path) == blob.sha256 else "is damaged"


# Files


def _take(path: Path, *, own: bool, progress: Callable[[int], None]) -> Blob:
    """Have a file among the blobs."""
    digest = _sum(path, progress)
    blob, target = Blob(digest, path.stat().st_size), _blob_path(digest)
    if target.is_file() and target.stat().st_size == blob.size:
        return blob
    target.parent.mkdir(parents=True, exist_ok=True)
    if own:
        path.replace(target)
        return blob
    staged = _staged(target.parent)
    try:
        _duplicate(path, staged)
        if _sum(staged) != digest:
            raise CorruptModel(f"{path} changed while it was imported.", hint="Try again when it is at rest.")
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    return blob


def _duplicate(source: Path, target: Path) -> None:
    """Clone, hard-link or copy: whichever of them comes first that the file system can."""
    target.unlink(missing_ok=True)
    if not _clone(source, target):
        try:
            target.hardlink_to(source.resolve())
        except OSError:
            shutil.copyfile(source, target)


def _clone(source: Path, target: Path) -> bool:
    """Have both share blocks until one is written to (Btrfs, XFS; `FICLONE` of ioctl_ficlone(2))."""
    try:
        import fcntl
    except ImportError:
        return False
    with source.open("rb") as given, target.open("wb") as made:
        try:
            fcntl.ioctl(made.fileno(), 0x40049409, given.fileno())
        except OSError:
            made.close()
            target.unlink()
            return False
    return True


def _sum(path: Path, progress: Callable[[int], None] = lambda _read: None) -> str:
    digest, read = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            read += len(chunk)
            progress(read)
    return digest.hexdigest()


def _sweep() -> int:
    """Remove blobs and views that no manifest refers to, and what was never finished; returns their bytes."""
    _sweep_staging()
    kept = list(manifests())
    views = {_view_path(manifest).name for manifest in kept}
    blobs = {_blob_path(blob.sha256).name for manifest in kept for blob in manifest.files.values()}
    for view in _entries(views_dir()):
        if view.name not in views:
            shutil.rmtree(view, ignore_errors=True)
    freed = 0
    for blob in _entries(blobs_dir()):
        if blob.name not in blobs:
            freed += blob.stat().st_size
            blob.unlink()
    return freed


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


# Names


def _view(manifest: Manifest) -> Path:
    """Return the model's directory, made now if it is missing. With the lock."""
    view = _view_path(manifest)
    if view.is_dir():
        return view
    view.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=view.parent, suffix=".tmp"))
    try:
        for name, blob in manifest.files.items():
            target = staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(_blob_path(blob.sha256))
        staged.rename(view)
    except FileNotFoundError as error:
        raise CorruptModel(
            f"The store lacks a file of {manifest.name!r}: {error.filename}.", hint="Import the model again."
        ) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return view


def _view_path(manifest: Manifest) -> Path:
    stem = manifest.name.replace("/", "--")
    return views_dir() / f"{stem}-{manifest.digest[:16]}"


def _blob_path(digest: str) -> Path:
    return blobs_dir() / f"sha256-{digest}"


def _manifest_path(name: str, revision: str) -> Path:
    return manifests_dir() / name / f"{revision}.json"


def _check_name(name: str, revision: str) -> None:
    if not _NAME.fullmatch(name) or not _REVISION.fullmatch(revision):
        raise InvalidArgument(f"{name!r} is no name for a model.", hint="Use letters, digits, '.', '_', '-', one '/'.")


def _encode(manifest: Manifest) -> bytes:
    values: dict[str, Any] = asdict(manifest)
    return json.dumps(values, indent=1, sort_keys=True).encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = _staged(path.parent)
    try:
        staged.write_bytes(content)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _staged(folder: Path) -> Path:
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
    os.close(descriptor)
    return Path(name)


def _locked() -> filelock.BaseFileLock:
    import filelock

    folder = data_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / ".content.lock")
