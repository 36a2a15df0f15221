"""An optimised BLAS for MLX's Linux CPU wheel, which calls netlib's slow reference BLAS.

numpy's wheels carry an OpenBLAS; native/blas.c redirects MLX's products of matrices to it. Never fatal: where
something does not fit, MLX stays as it was shipped.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import time
from pathlib import Path

import mlx.core as mx

from lib_mlx.models import cpu_library

log = logging.getLogger(__name__)

_MAX_THREADS = 8  # more cost their barriers more than they bring, for the sizes of one step
_TRIAL_S = 0.05  # at most, about
_WORTHWHILE = 1.4  # times faster: what a second core must bring to be taken from the host

_bound: str | None = None


def bind() -> str | None:
    """Make MLX use the OpenBLAS that is installed with numpy; return its name, or None if MLX stays as it is.

    Engine thread only. Once bound, it stays so; further calls do nothing.
    """
    global _bound  # noqa: PLW0603 - libmlx is one per process, too
    if _bound is None:
        try:
            _bound = _bind()
        except (OSError, AttributeError) as error:  # a file is missing, or is not what it should be
            log.debug("MLX keeps its own BLAS: %s", error)
    return _bound


def find_openblas() -> Path | None:
    """Return the OpenBLAS in numpy's wheel; None where numpy was built otherwise."""
    numpy = importlib.util.find_spec("numpy")
    if numpy is None or numpy.origin is None:
        return None
    return next(Path(numpy.origin).parent.parent.glob("numpy.libs/libscipy_openblas64_*.so"), None)


def _bind() -> str | None:
    shim, library = cpu_library.load(), find_openblas()
    if shim is None or library is None:
        return None
    libmlx = Path(mx.__file__).parent / "lib/libmlx.so"
    openblas = ctypes.CDLL(str(library))
    expected, calls = _sample_products(), counts(shim)
    if shim.lib_mlx_blas_redirect(os.fsencode(libmlx), os.fsencode(library)):
        return None
    found = _sample_products()
    if counts(shim) == calls or not all(map(_equal, expected, found)):
        shim.lib_mlx_blas_restore()
        log.warning("MLX keeps its own BLAS: it does not work with %s", library)
        return None
    _choose_threads(shim)
    config = openblas.scipy_openblas_get_config64_
    config.restype = ctypes.c_char_p
    return " ".join(config().decode().split()[:2])  # "OpenBLAS 0.3.31"


def counts(shim: ctypes.CDLL) -> tuple[int, int]:
    """Return how many of MLX's products went to OpenBLAS's gemm, and how many to its gemv: those of few rows."""
    gemm, gemv = ctypes.c_ulong(), ctypes.c_ulong()
    shim.lib_mlx_blas_counts(ctypes.byref(gemm), ctypes.byref(gemv))
    return gemm.value, gemv.value


def _sample_products() -> list[mx.array]:
    """Multiply a matrix and a row, each with a matrix as it is and transposed, in the types that BLAS knows."""
    with mx.stream(mx.cpu):
        a, b = (mx.sin(mx.arange(37 * 37) * step).reshape(37, 37) for step in (0.7, 1.3))
        products = []
        for dtype in (mx.float32, mx.float64, mx.complex64):
            left, right = a.astype(dtype), b.astype(dtype)
            products += [left @ right, left @ right.T, left[:1] @ right, left[:1] @ right.T]
        mx.eval(products)
    return products


def _equal(a: mx.array, b: mx.array) -> bool:
    return bool(mx.allclose(a, b, rtol=1e-4, atol=1e-4, stream=mx.cpu))


def _choose_threads(shim: ctypes.CDLL) -> None:
    """Give MLX's products more than one thread only if that is clearly faster now.

    OpenBLAS's threads wait for each other busily: on cores with other work a product takes 50 times as long.
    """
    count = min(len(os.sched_getaffinity(0)) - 1, _MAX_THREADS)  # one core stays for the thread that calls
    if count > 1 and _worst_time(shim, 1) > _WORTHWHILE * _worst_time(shim, count):
        shim.lib_mlx_blas_set_threads(count)
    else:
        shim.lib_mlx_blas_set_threads(1)


def _worst_time(shim: ctypes.CDLL, threads: int) -> float:
    """Time the product of a prefill, a few times; return the longest: one stall is too many."""
    shim.lib_mlx_blas_set_threads(threads)
    a, b = mx.zeros((64, 1024)), mx.zeros((1024, 1024))
    mx.eval(a @ b)  # wakes the threads
    until = time.perf_counter() + _TRIAL_S / 2
    worst = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        mx.eval(a @ b)
        ended = time.perf_counter()
        worst = max(worst, ended - begun)
        if ended > until:
            break
    return worst
