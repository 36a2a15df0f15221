"""Where this installation has what C programs are built with."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from lib_mlx.errors import NotFound


@dataclass(frozen=True)
class Installation:
    """The files of an installation: a wheel's, a checkout's after `build_ffi.py`, or a bundle's."""

    prefix: Path
    """The package's folder, which moves as a whole."""

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.prefix / ("liblib_mlx.dylib" if sys.platform == "darwin" else "liblib_mlx.so")

    @property
    def include(self) -> Path:
        """The folder of lib_mlx.h and lib_mlx.hpp."""
        return self.prefix / "include"

    @property
    def pkgconfig(self) -> Path:
        """For PKG_CONFIG_PATH."""
        return self.prefix / "share/pkgconfig"

    @property
    def cmake(self) -> Path:
        """For CMake's `lib_mlx_DIR`; or have CMAKE_PREFIX_PATH name the prefix."""
        return self.prefix / "share/cmake/lib_mlx"

    @property
    def cflags(self) -> str:
        """What a compiler needs, quoted for a shell."""
        return shlex.join([f"-I{self.include}"])

    @property
    def libs(self) -> str:
        """What a linker needs, quoted for a shell; the program finds the library where it is now."""
        return shlex.join([f"-L{self.prefix}", "-llib_mlx", f"-Wl,-rpath,{self.prefix}"])


def installation() -> Installation:
    """Return the running package's.

    Raises:
        NotFound: the library has not been built.
    """
    found = Installation(Path(__file__).resolve().parent)
    if not found.library.is_file() or not found.include.is_dir():
        raise NotFound(f"There is no {found.library}.", hint="In a checkout: python build_ffi.py.")
    return found
