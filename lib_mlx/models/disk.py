"""A disk that is full is an error of its own, wherever it is met."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from lib_mlx.errors import DiskFull, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: BaseException) -> bool:
    """Tell whether `error` says that a disk, a quota or a file's limit has been reached."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextlib.contextmanager
def room_on(folder: Path) -> Iterator[None]:
    """Raise DiskFull for what the block could not write into `folder` for want of room."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise DiskFull(
            f"There is no room left in {folder}: {error.strerror}.",
            hint="Make room, or have it elsewhere (LIB_MLX_DATA_DIR, LIB_MLX_STATE_DIR, HF_HOME), and try again.",
        ) from error


def check_folder(folder: Path) -> None:
    """Refuse a folder that `make_folder` could not make, before anything takes time; makes none."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise _no_folder(folder, f"{there} {'may not be written' if there.is_dir() else 'is a file'}")


def make_folder(folder: Path) -> None:
    """Make a folder for what is to be written, and those above it; raises InvalidArgument if it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full(error):
            raise
        raise _no_folder(folder, str(error.strerror)) from error


def _no_folder(folder: Path, why: str) -> InvalidArgument:
    return InvalidArgument(f"{folder} cannot be a folder: {why}.", hint="Choose another place.", param="output_path")


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Give a file to write, of the same suffix, which takes the place of `path` whole or not at all."""
    staged = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield staged
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
