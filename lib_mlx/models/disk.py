"""Writing: whole or not at all, where nothing is and nobody else writes; a full disk is an error of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING

from lib_mlx.errors import DiskFull, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MARK, _LOCK = ".identity", ".lock"


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


def check_new(target: Path) -> None:
    """Refuse a place where something is."""
    if target.exists():
        raise InvalidArgument(
            f"{target} exists already.", hint="Remove it or choose another place.", param="output_path"
        )


@contextlib.contextmanager
def staged_folder(target: Path, identity: str = "") -> Iterator[Path]:
    """Give a folder to fill, which becomes the new folder `target` whole or not at all.

    What an attempt of the same `identity` left is in it, also that of a killed process. Without one nothing is, and
    what fails leaves nothing.

    Raises:
        InvalidArgument: `target` exists, cannot be made, or is being written by another process.
        DiskFull: there is no room for it.
    """
    check_new(target)
    staged = target.with_name(f".{target.name}.partial")
    with room_on(target.parent), _alone(staged, target):
        try:
            check_new(target)  # whoever had the lock may have just made it
            _keep_what_fits(staged, identity)
            yield staged
            staged.rename(target)
        except BaseException:
            if not identity:
                shutil.rmtree(staged, ignore_errors=True)
            raise
        for name in (_MARK, _LOCK):  # last: while the folder has its name, nobody else is given it
            (target / name).unlink()


@contextlib.contextmanager
def _alone(staged: Path, target: Path) -> Iterator[None]:
    import filelock

    make_folder(staged)
    lock = filelock.FileLock(staged / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InvalidArgument(
            f"{target} is being written by another process.",
            hint="Wait until it has ended, or choose another place.",
            param="output_path",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _keep_what_fits(staged: Path, identity: str) -> None:
    mark = staged / _MARK
    if not (identity and mark.is_file() and mark.read_text() == identity):
        for path in staged.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
    mark.write_text(identity)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Give a file to write, of the same suffix, which takes the place of `path` whole or not at all."""
    staged = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield staged
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
