"""Making a bundle.

```
DIR/lib_mlx/      the package: liblib_mlx.so, headers, share/
DIR/python/       a Python: bin/, lib/ with libpython, the standard library and site-packages
DIR/models/NAME/  a model, if one was asked for
DIR/bundle.json   versions, and every file's size and SHA-256
```

The library finds the Python because it lies beside it (docs/embedding.md). Nothing in the folder knows where it is.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import TYPE_CHECKING, Any

from lib_mlx.bundle import binaries
from lib_mlx.bundle.interpreter import NAME, SITE_PACKAGES, interpreter_files
from lib_mlx.bundle.packages import FOR_OTHER_TOKENIZERS, FOR_TERMINALS, distribution_files, own_files, required
from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.installation import installation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from importlib.metadata import Distribution

MANIFEST = "bundle.json"
PYTHON = Path("python")
PACKAGE = Path("lib_mlx")
_SYSTEM_PREFIXES = frozenset({"/", "/usr", "/usr/local"})  # of many machines: they give nothing away


@dataclass(frozen=True)
class Bundle:
    """A bundle that was made."""

    path: Path
    bytes: int
    parts_bytes: int
    """Of what was copied."""
    model: Path | None
    """Its model's directory."""


def create(
    path: Path,
    *,
    model: str | None = None,
    vision: bool = False,
    progress: Callable[[str], None] = lambda _stage: None,
) -> Bundle:
    """Make a bundle at `path`, which must not exist or be empty. Blocks for seconds; all or nothing, at Ctrl-C too.

    Args:
        path: the folder to make.
        model: put this model into it too, by path or name.
        vision: with the packages of the extra `vision`.
        progress: told each stage.

    Raises:
        InvalidArgument: there is something at `path`, or it lies in what is to be copied.
        UnsupportedFeature: this Python cannot be bundled, or a package or tool is missing.
        ModelNotFound: there is no such model.
    """
    if sys.platform == "darwin":
        raise UnsupportedFeature("Bundles are not made on macOS yet.", hint="See docs/embedding.md for the steps.")
    path = path.resolve()  # where a link leads to
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidArgument(f"{path} is there already.", hint="Name a new folder.", param="dir")
    source = _resolve(model) if model else None
    for copied in (source, installation().prefix, Path(sysconfig.get_path("stdlib"))):
        if copied is not None and path.is_relative_to(copied.resolve()):
            raise InvalidArgument(f"{path} lies in {copied}, which it is to hold.", hint="Name another.", param="dir")
    new = [folder for folder in path.parents if not folder.exists()]
    building = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        parts = _build(building, source, model or "", vision=vision, progress=progress)
        if path.exists():
            path.rmdir()
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        for folder in new:
            with contextlib.suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Bundle(path, size, parts, next(path.glob("models/*"), None))


def _build(root: Path, source: Path | None, model: str, *, vision: bool, progress: Callable[[str], None]) -> int:
    without = FOR_TERMINALS | (FOR_OTHER_TOKENIZERS if source and _reads_tokenizer(source) and not vision else set())
    distributions = required(("cpu", "vision") if vision else ("cpu",), without)
    progress("copying Python and packages")
    _copy(root / PYTHON, interpreter_files())
    _copy(root / PACKAGE, own_files(f"_backend_cp3{sys.version_info.minor}.so"))
    for distribution in distributions:
        _copy(root / PYTHON / SITE_PACKAGES, distribution_files(distribution))
    progress("making binaries relocatable")
    binaries.relocate(root, root / PYTHON / "lib")
    _forget_this_machine(root)
    parts = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    progress("compiling")
    _compile(root)
    if source is not None:
        progress("copying the model")
        files = list(_model_files(source))
        _copy(root / "models" / _name(source, model), files)
        parts += sum(file.stat().st_size for _, file in files)
    (root / MANIFEST).write_text(json.dumps(_manifest(root, distributions), indent=1) + "\n")
    return parts


def _resolve(model: str) -> Path:
    from lib_mlx.models import store

    return store.resolve(model)


def _name(source: Path, model: str) -> str:
    # The directory of a model in the Hugging Face cache is named by a commit.
    return Path(model).name if len(source.name) == len("0" * 40) else source.name


def _model_files(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield where a file goes and where it is, also in folders that are links."""
    seen = set()
    for folder, inner, names in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above
            inner.clear()
            continue
        seen.add(real)
        for name in names:
            file = Path(folder, name)
            if file.is_file():
                yield str(file.relative_to(source)), file


def _reads_tokenizer(source: Path) -> bool:
    from lib_mlx.models.checkpoint import inspect
    from lib_mlx.models.tokenizer import read_tokenizer

    checkpoint = inspect(source)
    return read_tokenizer(checkpoint.path, checkpoint.config) is not None


def _copy(folder: Path, files: Iterable[tuple[str, Path]]) -> None:
    for name, source in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _forget_this_machine(root: Path) -> None:
    """Put something of the same length for every path of this machine, so that binaries stay whole, too.

    A path's last part stays: linkers have other strings share a string's end ("3.11.7" that of a prefix).
    """
    prefixes = {sys.prefix, sys.base_prefix, str(installation().prefix.parent)}
    prefixes |= {os.path.realpath(prefix) for prefix in prefixes}
    prefixes -= _SYSTEM_PREFIXES
    known = sorted((prefix for prefix in prefixes if prefix.count("/") > 1), key=len, reverse=True)
    for file in root.rglob("*"):
        if not file.is_file():
            continue
        content = before = file.read_bytes()
        for prefix in known:
            folder, _, name = prefix.rpartition("/")
            content = content.replace(prefix.encode(), f"/{'_' * (len(folder) - 1)}/{name}".encode())
        if content is not before and content != before:
            file.write_bytes(content)


def _compile(root: Path) -> None:
    """Compile all modules for good: files that are never compared with their sources' times, nor written again."""
    for folder in (PYTHON / "lib" / NAME, PACKAGE):
        compileall.compile_dir(
            root / folder,
            quiet=2,
            stripdir=str(root),
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
            workers=0,
        )


def _manifest(root: Path, distributions: Iterable[Distribution]) -> dict[str, Any]:
    return {
        "lib_mlx": version("lib-mlx"),
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "packages": {found.metadata["Name"]: found.version for found in distributions},
        "files": {str(file.relative_to(root)): describe(file) for file in sorted(root.rglob("*")) if file.is_file()},
    }


def describe(file: Path) -> list[int | str]:
    """Return a file's size and the SHA-256 of its content."""
    with file.open("rb") as content:
        return [file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()]
