"""Where MLX computes. Engine thread only."""

from __future__ import annotations

import mlx.core as mx

from lib_mlx.engine import blas


def set_up() -> str | None:
    """Make the process's MLX ready; returns the BLAS in place of its own, None if it runs as shipped."""
    if mx.default_device() != mx.cpu:
        return None
    # On the CPU, MLX compiles fused kernels by running g++ in a world-writable /tmp/mlx, through system(), which
    # interrupts the host's system calls.
    mx.disable_compile()
    return blas.bind()
