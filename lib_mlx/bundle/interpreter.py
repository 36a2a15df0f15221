"""The files of the running Python that a bundle needs, and where they go."""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from lib_mlx.errors import UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"
STDLIB = f"lib/{NAME}"
SITE_PACKAGES = f"{STDLIB}/site-packages"

_UNUSED = frozenset(
    {"__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "test"}
    | {"tkinter", "turtledemo", "curses", "dbm", "sqlite3"}
)
"""Folders of the standard library that an app has no use for: tests, tools, databases, terminals, windows."""
_UNUSED_MODULES = re.compile(
    r"(_?(tkinter|curses|curses_panel|sqlite3|dbm|gdbm|crypt|test\w*|ctypes_test|xx\w+)|nis|ossaudiodev|readline|spwd"
    r"|xx\w+)\..*"
)


def interpreter_files() -> Iterator[tuple[str, Path]]:
    """Yield where a file goes, relative to the bundle's Python, and where it is.

    Raises:
        UnsupportedFeature: this Python has no shared libpython.
    """
    yield f"bin/{NAME}", (Path(sys.base_prefix) / "bin" / NAME).resolve()
    library = Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("INSTSONAME")
    if ".so" not in library.name and library.suffix != ".dylib":
        raise UnsupportedFeature(
            f"The Python in {sys.base_prefix} has no shared libpython.",
            hint="Use one that was built with --enable-shared (Debian: libpython3.x; uv's Pythons).",
        )
    yield f"lib/{library.name}", library.resolve()
    stdlib = Path(sysconfig.get_path("stdlib"))
    for path in _walk(stdlib):
        yield f"{STDLIB}/{path.relative_to(stdlib)}", path


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in _UNUSED and not path.name.startswith("config-"):
                yield from _walk(path)
        elif not (path.parent.name == "lib-dynload" and _UNUSED_MODULES.fullmatch(path.name)):
            yield path
