"""Importing what uses MLX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import UnsupportedFeature

if TYPE_CHECKING:
    from types import ModuleType

_CUDA = ("libcuda.so", "libcu", "libnv")
"""Libraries of the driver, and those that come with MLX's CUDA build."""


def import_on_worker(name: str) -> ModuleType:
    """Import a module that imports MLX. Blocks.

    On the engine thread: MLX has the thread that imports it take the GIL as the last thing it does, which aborts a
    process that is exiting.

    Raises:
        UnsupportedFeature: MLX is here without a back end, or with one that this machine has no driver for.
    """
    try:
        return get_worker().run(importlib.import_module, name)
    except ImportError as error:
        raise _explained(error) from error


def _explained(error: ImportError) -> Exception:
    """Return what the loader's complaint means; plain `mlx` on Linux has no libmlx.so."""
    hint = "Install NVIDIA's driver, or: pip uninstall mlx-cuda-12 mlx-cuda-13; pip install 'lib-mlx[cpu]'"
    missing = str(error).partition(":")[0]
    if missing.startswith("libmlx.so"):
        return UnsupportedFeature(
            "MLX is installed without a back end.",
            hint="pip install 'lib-mlx[cpu]', or 'lib-mlx[cuda]' for NVIDIA's GPUs; one of them, not both.",
        )
    if missing.startswith(_CUDA):
        return UnsupportedFeature(
            f"MLX's CUDA build needs {missing}, which this machine does not have.",
            hint=hint,
        )
    if "CUDA" in str(error):  # it allocates while it is imported
        return UnsupportedFeature(f"MLX's CUDA build found no GPU that it can use: {error}.", hint=hint)
    return error
