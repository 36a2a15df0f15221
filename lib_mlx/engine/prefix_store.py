"""The prefix cache of one model on disk, across restarts. Engine thread only, but for `open_store`.

    DIRECTORY/<model>/index.json          what the files hold, and for which state of the model
    DIRECTORY/<model>/<name>.safetensors  one KV cache, as mlx-lm writes it

The index is written last and names every file's size and checksum, so that a crash leaves nothing that counts. What
belongs to other weights, another way of keeping them or other versions is removed. A file is read when it is first
used; if its checksum is wrong then, it is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from lib_mlx.errors import InvalidArgument
from lib_mlx.models.upstream import load_prompt_cache, save_prompt_cache

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lib_mlx.engine.prefix_cache import Entry, PrefixCache
    from lib_mlx.models.checkpoint import Checkpoint

log = logging.getLogger(__name__)

_SAVE_S = 3.0  # an unload waits no longer for it
_LOCK_S = 1.0
_MOST = 128  # entries: each holds its file open until it is first used, and descriptors are the host's


def open_store(directory: str, checkpoint: Checkpoint, *settings: object) -> PrefixStore:
    """Return the store of `checkpoint`, run with `settings`, in `directory`, which is made if missing. Any thread.

    Raises:
        InvalidArgument: the directory cannot be made.
    """
    path = Path(directory) / hashlib.sha256(str(checkpoint.path.resolve()).encode()).hexdigest()[:16]
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what users have asked
    except OSError as error:
        raise InvalidArgument(
            f"The prefix cache cannot be kept in {directory}: {error.strerror}.",
            hint="Name a directory that can be written.",
            param="prefix_cache_path",
        ) from None
    return PrefixStore(path, _fingerprint(checkpoint, settings))


def _fingerprint(checkpoint: Checkpoint, settings: Iterable[object]) -> str:
    """Name everything that the content of a KV cache depends on."""
    files = [file for file in sorted(checkpoint.path.iterdir()) if file.suffix in {".json", ".safetensors", ".jinja"}]
    facts = [
        *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files),
        *(f"{package} {version(package)}" for package in ("lib-mlx", "mlx", "mlx-lm")),
        *((f"mlx-vlm {version('mlx-vlm')}",) if checkpoint.has_towers else ()),
        *map(str, settings),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


@dataclass(frozen=True)
class _Record:
    """One file of the index."""

    file: str
    size: int
    sha256: str
    salt: str
    tokens: list[int]

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file:  # a TypeError if it is no string
            raise ValueError("not a file of this directory")


class PrefixStore:
    """See the module. Nothing here raises: without its files the cache is empty, and that is all."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint

    def load(self, prefixes: PrefixCache) -> None:
        """Put what is stored into `prefixes`; no tensor is read yet."""
        for record in reversed(self._read_index()[:_MOST]):  # the most recently used one last
            file = self._path / record.file
            try:
                if self._is_there(record):
                    check = _Check(file, record.sha256)
                    prefixes.store(record.tokens, load_prompt_cache(str(file)), record.salt, check)
            except Exception as error:  # noqa: BLE001 - mlx-lm raises whatever a damaged file makes it raise
                log.warning("a stored prefix is ignored: %s: %s", file, error)

    def save(self, prefixes: PrefixCache) -> None:
        """Write what is new in `prefixes`, the most recently used first, and remove what is no longer there."""
        try:
            with FileLock(self._path / "lock", timeout=_LOCK_S):
                self._save(prefixes)
        except Exception as error:  # noqa: BLE001 - filelock and mlx-lm raise more than OSError; an unload must not fail
            log.warning("the prefix cache was not stored: %s", error)

    def _save(self, prefixes: PrefixCache) -> None:
        stored = {record.file: record for record in self._read_index() if self._is_there(record)}
        until = time.monotonic() + _SAVE_S
        records = []
        for entry in itertools.islice(prefixes.entries(), _MOST):
            name = _file_name(entry)
            if name in stored:
                records.append(stored[name])
            elif time.monotonic() < until:
                records.append(self._write(entry, name))
        index = {"fingerprint": self._fingerprint, "entries": [asdict(record) for record in records]}
        fresh = self._path / "index.tmp"
        fresh.write_text(json.dumps(index))
        fresh.replace(self._path / "index.json")
        kept = {record.file for record in records}
        for file in self._path.glob("*.safetensors"):
            if file.name not in kept:
                file.unlink(missing_ok=True)

    def _write(self, entry: Entry, name: str) -> _Record:
        file = self._path / name
        fresh = file.with_suffix(".tmp.safetensors")  # mlx appends the suffix to any other name
        try:
            save_prompt_cache(str(fresh), entry.cache)
            record = _Record(name, fresh.stat().st_size, _checksum(fresh), entry.salt, entry.tokens.tolist())
            fresh.replace(file)
        except RuntimeError as error:  # what MLX makes of a full disk
            raise OSError(str(error)) from None
        finally:
            fresh.unlink(missing_ok=True)
        return record

    def _is_there(self, record: _Record) -> bool:
        try:
            return (self._path / record.file).stat().st_size == record.size
        except OSError:
            return False

    def _read_index(self) -> list[_Record]:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            index = json.loads((self._path / "index.json").read_text())
            if index["fingerprint"] == self._fingerprint:
                return [_Record(**entry) for entry in index["entries"]]
        return []


class _Check:
    """Whether a stored file is what was written."""

    def __init__(self, file: Path, sha256: str) -> None:
        self._file = file
        self._sha256 = sha256

    def __call__(self) -> bool:
        with contextlib.suppress(OSError):
            if _checksum(self._file) == self._sha256:
                return True
        log.warning("a stored prefix is damaged and ignored: %s", self._file)
        self._file.unlink(missing_ok=True)
        return False


def _file_name(entry: Entry) -> str:
    key = hashlib.sha256(entry.salt.encode(errors="surrogatepass") + b"\0" + entry.tokens.tobytes())
    return f"{key.hexdigest()[:32]}.safetensors"


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
