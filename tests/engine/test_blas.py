"""The OpenBLAS that stands in for MLX's own BLAS on the CPU."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

import build_ffi
from lib_mlx.engine import blas
from lib_mlx.engine.worker import get_worker
from lib_mlx.models import cpu_library
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(not build_ffi.HAS_CPU, reason="Linux only")

ROW_MAJOR, NO_TRANS, TRANS = 101, 111, 112
FLOAT_POINTER = ctypes.POINTER(ctypes.c_float)


@pytest.fixture
def shim() -> Iterator[ctypes.CDLL]:
    """The shim, bound and unbound at the end if it was not before."""
    build_ffi.main()
    assert get_worker().run(blas.bind)
    library = cpu_library.load()
    assert library is not None
    yield library
    get_worker().run(library.lib_mlx_blas_set_threads, 1)


def on_engine(work: Callable[[], Any]) -> Any:
    """Run MLX code where it belongs."""
    return get_worker().run(work)


def test_mlx_calls_openblas(shim: ctypes.CDLL) -> None:
    """A product of matrices goes to sgemm, one of a row with a matrix to sgemv."""

    def product(rows: int) -> None:
        mx.eval(mx.ones((rows, 8)) @ mx.ones((8, 8)))

    gemm, gemv = blas.counts(shim)
    on_engine(lambda: product(2))
    assert blas.counts(shim) == (gemm + 1, gemv)
    on_engine(lambda: product(1))
    assert blas.counts(shim) == (gemm + 1, gemv + 1)


@pytest.mark.parametrize("kind", [mx.float32, mx.float64, mx.complex64])
@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 64, 65), (33, 1, 9), (1, 1, 1), (4, 0, 3), (1, 0, 3), (1, 3, 0)])
def test_results_equal_those_of_numpy(shim: ctypes.CDLL, kind: mx.Dtype, shape: tuple[int, int, int]) -> None:
    """Products of any shape, empty ones too, are what numpy says."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((m, k)), rng.standard_normal((k, n))

    def products() -> list[Any]:
        with mx.stream(mx.cpu):
            a, b = mx.array(left.tolist(), kind).reshape(m, k), mx.array(right.tolist(), kind).reshape(k, n)
            both = [a @ b, a @ mx.contiguous(b.T).T]
            return [product.tolist() for product in both]

    for product in on_engine(products):
        np.testing.assert_allclose(np.reshape(product, (m, n)), left @ right, rtol=1e-4, atol=1e-5)


def sgemm(shim: ctypes.CDLL, transposed: tuple[int, int], shape: tuple[int, int, int], pad: int, **scale: float) -> Any:
    """Call the stand-in for cblas_sgemm on matrices whose rows are `pad` longer than needed; C begins as NaN or 1."""
    m, n, k = shape
    rng = np.random.default_rng(1)
    a = rng.standard_normal((k, m + pad) if transposed[0] == TRANS else (m, k + pad)).astype(np.float32)
    b = rng.standard_normal((n, k + pad) if transposed[1] == TRANS else (k, n + pad)).astype(np.float32)
    alpha, beta = scale["alpha"], scale["beta"]
    c = np.full((m, n + pad), 1 if beta else np.nan, np.float32)
    expected = alpha * (a[:, :m].T if transposed[0] == TRANS else a[:, :k]).astype(np.float64)
    expected = expected @ (b[:, :k].T if transposed[1] == TRANS else b[:, :n]) + beta
    alpha, beta = ctypes.c_float(alpha), ctypes.c_float(beta)
    matrices = [matrix.ctypes.data_as(FLOAT_POINTER) for matrix in (a, b, c)]
    widths = [matrix.shape[1] for matrix in (a, b, c)]
    shim.lib_mlx_blas_sgemm(
        ROW_MAJOR, *transposed, m, n, k, alpha, matrices[0], widths[0], matrices[1], widths[1], beta, matrices[2],
        widths[2],
    )  # fmt: skip
    np.testing.assert_allclose(c[:, :n], expected, rtol=1e-4, atol=1e-4)
    return c[:, :n]


@pytest.mark.parametrize("trans_a", [NO_TRANS, TRANS])
@pytest.mark.parametrize("trans_b", [NO_TRANS, TRANS])
@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.5, 0.0), (-2.0, 1.0), (1.0, 0.25)])
def test_few_rows_times_a_matrix(
    shim: ctypes.CDLL, trans_a: int, trans_b: int, pad: int, alpha: float, beta: float
) -> None:
    """Gemv gives what gemm gives, for both transposes, padded rows, any scale; beta 0 overwrites even NaN."""
    for rows in (1, 2, 5, 6, 7):
        _, before = blas.counts(shim)
        sgemm(shim, (trans_a, trans_b), (rows, 45, 67), pad, alpha=alpha, beta=beta)
        by_gemv = rows == 1 or (rows <= 6 and (trans_a, trans_b) == (NO_TRANS, TRANS))
        assert blas.counts(shim)[1] == before + by_gemv


@pytest.mark.parametrize("shape", [(2, 1000, 999), (6, 3, 100_000), (3, 70_000, 1), (4, 128, 512)])
def test_few_rows_times_a_matrix_larger_than_the_cache(shim: ctypes.CDLL, shape: tuple[int, int, int]) -> None:
    """The blocks of a large matrix, whole or not, make up the product."""
    sgemm(shim, (NO_TRANS, TRANS), shape, 1, alpha=0.01, beta=1.0)


def test_an_empty_sum_still_scales(shim: ctypes.CDLL) -> None:
    """With nothing to add up, c becomes beta times c; with no column, nothing happens."""
    sgemm(shim, (NO_TRANS, NO_TRANS), (1, 5, 0), 1, alpha=1.0, beta=0.5)
    sgemm(shim, (NO_TRANS, TRANS), (1, 0, 5), 1, alpha=1.0, beta=0.5)


def test_the_hosts_threads_stay(shim: ctypes.CDLL) -> None:
    """OpenBLAS's number of threads, which numpy shares, is the host's again after every product."""
    library = blas.find_openblas()
    assert library is not None
    openblas = ctypes.CDLL(str(library))
    before = openblas.scipy_openblas_get_num_threads64_()
    try:
        for hosts in (1, 2):
            openblas.scipy_openblas_set_num_threads64_(hosts)
            for ours in (1, 2):
                shim.lib_mlx_blas_set_threads(ours)
                sgemm(shim, (NO_TRANS, NO_TRANS), (64, 64, 64), 0, alpha=1.0, beta=0.0)
                assert openblas.scipy_openblas_get_num_threads64_() == hosts
    finally:
        openblas.scipy_openblas_set_num_threads64_(before)


@pytest.mark.parametrize(("speedup", "cores", "expected"), [(1.9, 4, 3), (1.1, 4, 1), (1.9, 2, 1), (1.9, 64, 8)])
def test_threads_are_taken_only_if_they_pay(
    shim: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, speedup: float, cores: int, expected: int
) -> None:
    """One core is always left alone, and one thread is what remains unless more are clearly faster."""

    class Shim:
        def lib_mlx_blas_set_threads(self, count: int) -> None:
            self.threads = count

    fake: Any = Shim()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(blas, "_worst_time", lambda _, threads: 1.0 if threads == 1 else 1.0 / speedup)
    blas._choose_threads(fake)
    assert fake.threads == expected


def test_the_thread_measurement_is_short(shim: ctypes.CDLL) -> None:
    """However busy the machine is, each number of threads is tried at least once, and seconds do not pass."""

    def measure() -> list[float]:
        return [blas._worst_time(shim, threads) for threads in (1, 2)]

    assert all(0 < seconds < 1 for seconds in on_engine(measure))


@pytest.mark.parametrize("missing", ["shim", "openblas", "symbols"])
def test_what_is_missing_leaves_mlx_as_shipped(
    shim: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Without the shim, the OpenBLAS or its symbols, nothing is bound and nothing fails."""
    monkeypatch.setattr(blas, "_bound", None)
    if missing == "shim":
        monkeypatch.setattr(cpu_library, "load", lambda: None)
    else:
        monkeypatch.setattr(blas, "find_openblas", lambda: Path(mx.__file__) if missing == "symbols" else None)
        shim.lib_mlx_blas_restore()
    assert on_engine(blas.bind) is None
    monkeypatch.undo()
    shim.lib_mlx_blas_restore()
    monkeypatch.setattr(blas, "_bound", None)
    assert on_engine(blas.bind)


def test_wrong_results_are_undone(
    shim: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If MLX's products change by the binding, MLX gets its own BLAS back, and a warning says so."""
    monkeypatch.setattr(blas, "_bound", None)
    monkeypatch.setattr(blas, "_equal", lambda *_: False)
    shim.lib_mlx_blas_restore()
    assert on_engine(blas.bind) is None
    assert "does not work" in caplog.text
    calls = blas.counts(shim)
    on_engine(lambda: mx.eval(mx.ones((2, 2)) @ mx.ones((2, 2))))
    assert blas.counts(shim) == calls
    monkeypatch.undo()
    monkeypatch.setattr(blas, "_bound", None)
    assert on_engine(blas.bind)


@pytest.mark.model
def test_logits_of_a_real_model(shim: ctypes.CDLL, smollm2: Path) -> None:
    """SmolLM2's logits in float32 are those of MLX's own BLAS."""
    network: Any = on_engine(lambda: load_weights(inspect(smollm2), lambda _: None, lambda: False, "float32")).network

    def logits() -> Any:
        return np.array(network(mx.array([list(range(100, 116))])).tolist())

    fast = on_engine(logits)
    shim.lib_mlx_blas_restore()
    own = on_engine(logits)
    library = blas.find_openblas()
    assert library is not None
    assert (
        shim.lib_mlx_blas_redirect(str(Path(mx.__file__).parent / "lib/libmlx.so").encode(), str(library).encode()) == 0
    )
    assert np.abs(fast - own).max() < 2e-4
    assert (fast.argmax(-1) == own.argmax(-1)).all()


WRITES = """
import ctypes, json, sys
from pathlib import Path
import mlx.core as mx, numpy as np
from lib_mlx.engine import blas
from lib_mlx.models import cpu_library

def segments(name):
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(name)]
    return [(line[0], line[1]) for line in lines if line[1].startswith("r") and "x" not in line[1]]

def words(name):
    ranges = [[int(end, 16) for end in place.split("-")] for place, _ in segments(name)]
    return np.concatenate([np.frombuffer(ctypes.string_at(a, b - a), np.uint64) for a, b in ranges])

mx.eval(mx.ones((2, 2)) @ mx.ones((2, 2)))
mx.synchronize()
libmlx, openblas = Path(mx.__file__).parent / "lib/libmlx.so", blas.find_openblas()
ctypes.CDLL(str(openblas))
others = ["/libc.so.6", Path(np._core._multiarray_umath.__file__).name, openblas.name, "/libm.so.6"]
names = ["/libmlx.so", *others]
shim = cpu_library.load()
for _ in range(2):  # the first time numpy binds functions of its own
    before = [(words(name), segments(name)) for name in names]
    changed = [int((words(name) != seen).sum()) for name, (seen, _) in zip(names, before)]
assert shim.lib_mlx_blas_redirect(str(libmlx).encode(), str(openblas).encode()) == 0
after = [(words(name), segments(name)) for name in names]
changed = {name: int((a[0] != b[0]).sum()) for name, a, b in zip(names, before, after)}
same_protection = all(a[1] == b[1] for a, b in zip(before, after))
shim.lib_mlx_blas_restore()
restored = int((words("/libmlx.so") != before[0][0]).sum())
mx.clear_streams()
print(json.dumps([changed, same_protection, restored]))
"""


def test_three_words_are_written_and_no_other_library_is_touched(shim: ctypes.CDLL) -> None:
    """In the memory of libmlx three words change; in numpy, OpenBLAS and the maths library, none."""
    result = subprocess.run([sys.executable, "-c", WRITES], capture_output=True, text=True, check=True)
    changed, same_protection, restored = json.loads(result.stdout)
    assert changed.pop("/libmlx.so") == 3
    changed.pop("/libc.so.6")  # its heap is in use
    assert set(changed.values()) == {0}
    assert same_protection
    assert restored == 0


IMPORTER = """
void cblas_sgemm(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);
void cblas_dgemm(void);
void cblas_cgemm(void);
void use(void) { cblas_dgemm(); cblas_cgemm(); }
float product(float a, float b)
{
    float c = 0;
    cblas_sgemm(101, 111, 111, 1, 1, 1, 1, &a, 1, &b, 1, 0, &c, 1);
    return c;
}
"""
NAMELESS = "void cblas_sgemm(void) {} void cblas_dgemm(void) {} void cblas_cgemm(void) {}"
PROTECTED = """
import ctypes, sys
from pathlib import Path
directory, openblas, shim = sys.argv[1:]
ctypes.CDLL(directory + "/libblas.so", mode=ctypes.RTLD_GLOBAL)
importer = ctypes.CDLL(directory + "/libimporter.so")
importer.product.restype, importer.product.argtypes = ctypes.c_float, [ctypes.c_float] * 2
maps = lambda: [line for line in Path("/proc/self/maps").read_text().splitlines() if "libimporter" in line]
library, before = ctypes.CDLL(shim), maps()
assert importer.product(2, 3) == 0
assert library.lib_mlx_blas_redirect((directory + "/libblas.so").encode(), openblas.encode()) == -1
assert library.lib_mlx_blas_redirect((directory + "/nothing").encode(), openblas.encode()) == -1
assert importer.product(2, 3) == 0
for _ in range(2):
    assert library.lib_mlx_blas_redirect((directory + "/libimporter.so").encode(), openblas.encode()) == 0
    assert importer.product(2, 3) == 6
assert maps() == before
library.lib_mlx_blas_restore()
assert importer.product(2, 3) == 0
assert maps() == before
"""


def test_protected_imports(shim: ctypes.CDLL, tmp_path: Path) -> None:
    """A library whose imports the loader has made read-only is redirected, too, and protected again."""
    for name, code in (("importer", IMPORTER), ("blas", NAMELESS)):
        (tmp_path / f"{name}.c").write_text(code)
        flags = ["-shared", "-fPIC", "-Wl,-z,relro,-z,now", "-o", str(tmp_path / f"lib{name}.so")]
        subprocess.run(["cc", str(tmp_path / f"{name}.c"), *flags], check=True)
    openblas = str(blas.find_openblas())
    command = [sys.executable, "-c", PROTECTED, str(tmp_path), openblas, str(cpu_library.PATH)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
