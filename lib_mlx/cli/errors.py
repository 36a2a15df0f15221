"""The exit codes of `lib-mlx`, the same for every command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_mlx.errors import CorruptModel, DownloadFailed, ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from lib_mlx.errors import LibMlxError

EXIT_CODES = {
    0: "success",
    1: "failure",
    2: "wrong usage",
    3: "no such model",
    4: "download failed",
    5: "model unsupported or damaged",
    130: "interrupted",
}
_BY_ERROR = {ModelNotFound.code: 3, DownloadFailed.code: 4, UnsupportedModel.code: 5, CorruptModel.code: 5}


def exit_code(error: LibMlxError) -> int:
    """Return the exit code for `error`."""
    return _BY_ERROR.get(error.code, 1)
