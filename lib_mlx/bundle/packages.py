"""The packages that a bundle needs: what lib-mlx requires, without what only other uses of it need."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from lib_mlx.errors import UnsupportedFeature
from lib_mlx.installation import installation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FOR_TERMINALS = frozenset({"hf-xet", "rich", "typer"})
"""The command line and its downloads."""
FOR_OTHER_TOKENIZERS = frozenset({"protobuf", "sentencepiece", "transformers"})
"""What reads tokenizers that lib_mlx does not read itself (`models.tokenizer`)."""
_UNUSED = frozenset({"..", "__pycache__", "tests"})  # of these the first are scripts
_FOR_COMPILERS = frozenset({".a", ".pyi", ".pxd", ".pyx"})
_RECORDS = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "entry_points.txt"})
"""What installers keep for themselves, with paths of this machine."""


def required(extras: Iterable[str], without: frozenset[str]) -> list[Distribution]:
    """Return the installed distributions that lib-mlx requires here, with `extras`, by name.

    Raises:
        UnsupportedFeature: one is not installed.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, Distribution] = {}
    waiting = [Requirement(f"lib-mlx[{','.join(extras)}]")]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in without:
            continue
        found[name] = _find(name)
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            further = [Requirement(text) for text in found[name].requires or ()]
            waiting += [one for one in further if one.marker is None or one.marker.evaluate({"extra": extra})]
    return [found[name] for name in sorted(found)]


def _find(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise UnsupportedFeature(
            f"The package {name} is not installed here.", hint="Install lib-mlx with the extras that the bundle needs."
        ) from None


def distribution_files(found: Distribution) -> Iterator[tuple[str, Path]]:
    """Yield where a file goes, relative to site-packages, and where it is; scripts and caches are left out."""
    for file in found.files or ():
        source = Path(str(file.locate()))
        recorded = ".dist-info" in file.parts[0]
        unused = not _UNUSED.isdisjoint(file.parts) or file.suffix in _FOR_COMPILERS
        if unused or (recorded and file.name in _RECORDS):
            continue
        if recorded or found.metadata["Name"] != "lib-mlx":
            yield str(file), source


def own_files(backend: str) -> Iterator[tuple[str, Path]]:
    """Yield the package's own files, which stand beside the Python: native parts, headers, modules.

    Raises:
        UnsupportedFeature: the backend of this Python has not been built.
    """
    prefix = installation().prefix
    if not (prefix / backend).is_file():
        raise UnsupportedFeature(f"There is no {prefix / backend}.", hint="Run build_ffi.py with this Python.")
    for path in sorted(prefix.rglob("*")):
        name = path.relative_to(prefix)
        other = path.name.startswith("_backend_") and path.name != backend
        if path.is_file() and not other and "__pycache__" not in name.parts and name.parts[0] not in {"cli", "bundle"}:
            yield str(name), path
