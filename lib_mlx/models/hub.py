"""Fetching repositories from the Hugging Face Hub into its own cache."""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.error
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import DownloadFailed, LibMlxError, ModelNotFound, UnsupportedModel
from lib_mlx.models.disk import is_full
from lib_mlx.models.fetch import open_url
from lib_mlx.models.folders import hub_cache

if TYPE_CHECKING:
    from collections.abc import Callable

_PROBE_SECONDS = 2.5
# Weights as safetensors and the small files beside them. Pickled weights and code are never fetched.
_ALLOWED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]
_IGNORED = ["*/*"]


def is_offline() -> bool:
    """Tell whether `HF_HUB_OFFLINE` forbids the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def is_reachable() -> bool:
    """Ask the Hub (or `HF_ENDPOINT`) for a sign of life, for at most 2.5 seconds, name lookup included."""
    if is_offline():
        return False
    answers: list[bool] = []
    probe = threading.Thread(target=lambda: answers.append(_answers()), name="lib-mlx-hub-probe", daemon=True)
    probe.start()
    probe.join(_PROBE_SECONDS)
    return bool(answers and answers[0])


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _answers() -> bool:
    try:
        with open_url(f"{_endpoint()}/api/models?limit=1", method="HEAD", timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except Exception:  # noqa: BLE001 - whatever is wrong, the Hub cannot be used
        return False


def pull_repo(repo: str, revision: str | None, progress: Callable[[int, int], None]) -> Path:
    """Fetch or update `repo` in the Hugging Face cache; return its snapshot. `HF_TOKEN` is used if set.

    Raises:
        ModelNotFound: the Hub has no such repository or revision.
        UnsupportedModel: the repository has no safetensors weights.
        DownloadFailed: access is denied, or the network failed.
        OSError: there is no room for it.
    """
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {
        "repo_id": repo,
        "revision": revision,
        "endpoint": _endpoint(),
        "allow_patterns": _ALLOWED,
        "ignore_patterns": _IGNORED,
        "cache_dir": hub_cache(),
        "tqdm_class": _silent_bar(),
    }
    try:
        files = snapshot_download(**options, dry_run=True)
        _check_format(repo, [file.filename for file in files])
        missing = sum(file.file_size for file in files if file.will_download)
        with _watching(hub_cache() / ("models--" + repo.replace("/", "--")) / "blobs", missing, progress):
            return Path(snapshot_download(**options))
    except LibMlxError:
        raise
    except Exception as error:
        if is_full(error):
            raise
        # A dry run tells of every refusal as DryRunError, with the reason as its cause.
        raise _translated(repo, revision, error.__cause__ or error) from error


def _translated(repo: str, revision: str | None, error: BaseException) -> LibMlxError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return DownloadFailed(
            f"The repository {repo!r} asks you to accept its terms first.",
            hint="Accept them on its page and set HF_TOKEN to a token of your account.",
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)):
        where = f" at revision {revision!r}" if revision else ""
        return ModelNotFound(
            f"The Hugging Face Hub has no repository {repo!r}{where}.",
            hint="Check the spelling; a private repository needs HF_TOKEN.",
        )
    reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return DownloadFailed(
        f"{repo} could not be fetched from the Hugging Face Hub: {reason}.",
        hint="Check the network and try again; what has arrived is kept.",
    )


def _check_format(repo: str, files: list[str]) -> None:
    if not any(name.endswith(".safetensors") for name in files):
        raise UnsupportedModel(
            f"The repository {repo!r} has no weights in safetensors format.",
            hint="Pickled weights are never loaded. Look for a conversion, for example under mlx-community.",
        )


class _watching:  # noqa: N801 - used as a function
    """Report the growth of a folder while the body runs."""

    def __init__(self, folder: Path, total: int, progress: Callable[[int, int], None]) -> None:
        self._folder, self._total, self._progress = folder, total, progress
        self._start = self._bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lib-mlx-hub-progress", daemon=True)

    def _bytes(self) -> int:
        try:
            return sum(file.stat().st_size for file in self._folder.iterdir())
        except OSError:  # not there yet, or a file was renamed meanwhile
            return 0

    def _run(self) -> None:
        while not self._done.wait(0.25):
            self._progress(max(0, min(self._bytes() - self._start, self._total)), self._total)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._done.set()
        self._thread.join()
        if error is None:
            self._progress(self._total, self._total)


def _silent_bar() -> type[Any]:
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))  # type: ignore[no-untyped-call]

    return Silent


def verify_cache(progress: Callable[[str], None] = lambda _repo: None) -> list[str]:
    """Return which files of the Hugging Face cache are damaged: all are read, none is fetched or removed.

    The cache names a file by its sum: SHA-256 where Git LFS keeps it, else Git's SHA-1
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    faults = []
    for folder in sorted(hub_cache().glob("models--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        progress(repo)
        for blob in sorted(folder.glob("blobs/*")):
            if len(blob.name) in {40, 64} and _sum(blob) != blob.name:
                files = {link.name for link in folder.glob("snapshots/**/*") if link.resolve() == blob.resolve()}
                faults += [f"{repo}: {name} is damaged" for name in sorted(files) or [blob.name]]
    return faults


def _sum(blob: Path) -> str:
    digest = hashlib.sha256()
    if len(blob.name) == 40:
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()
