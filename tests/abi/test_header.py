"""include/lib_mlx.h and what the binaries export."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from lib_mlx import abi
from tests.abi.conftest import ROOT, compile_c, run

if TYPE_CHECKING:
    from pathlib import Path

HEADER = (ROOT / "include/lib_mlx.h").read_text()
FUNCTIONS = set(re.findall(r"^LIB_MLX_API .*?(lib_mlx_\w+)\(", HEADER, re.MULTILINE))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("standard", ["c99", "c11", "c++17"])
def test_header_compiles_alone(compiler: str, standard: str, tmp_path: Path) -> None:
    """The header needs nothing before it, in C99, C11 and C++17."""
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    source = tmp_path / ("alone.cpp" if "+" in standard else "alone.c")
    source.write_text("#include <lib_mlx.h>\nint main(void) { lib_mlx_free(0); return 0; }\n")
    compile_c(source, tmp_path / "alone.o", f"-std={standard}", "-c", compiler=compiler)


def test_exports_are_the_headers_functions(library: Path) -> None:
    """The library exports what the header declares and nothing else."""
    assert len(FUNCTIONS) == 10
    assert _exports(library) == FUNCTIONS


def test_backend_exports_one_function(library: Path) -> None:
    """The backend exports only what the front asks for: no second copy of the API, no PyInit."""
    for backend in library.parent.glob("_backend_cp*.so"):
        assert _exports(backend) == {"lib_mlx_backend"}


def test_library_links_no_libpython(library: Path) -> None:
    """The library loads where there is no Python: it depends on the C library alone."""
    needed = run(["readelf", "-d", library]).stdout
    assert set(re.findall(r"NEEDED.*\[(\w+)", needed)) <= {"libc", "libdl", "libpthread"}
    assert not re.search(r"RPATH|RUNPATH", needed)


def test_operations_are_numbered_alike() -> None:
    """The operations have the same numbers in C and in Python."""
    native = (ROOT / "native/backend.h").read_text()
    names = re.findall(r"LM_(\w+)", native.split("enum lm_operation {")[1].split("}")[0])
    assert names == [operation.name for operation in abi.Operation]
    assert f"#define LM_BACKEND_ABI {abi.BACKEND_ABI}\n" in native


def _exports(binary: Path) -> set[str]:
    return {line.split()[-1] for line in run(["nm", "-D", "--defined-only", binary]).stdout.splitlines()}
