from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import build_ffi
from lib_mlx.engine import blas
from lib_mlx.engine.worker import get_worker
from lib_mlx.models import cpu_library

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path


@pytest.fixture
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give the test its own data folder and Hugging Face cache, and no proxies; return their parent."""
    monkeypatch.setenv("LIB_MLX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def shim() -> ctypes.CDLL:
    """The C for the CPU, which MLX's products go through."""
    build_ffi.main()
    assert get_worker().run(blas.bind)
    library = cpu_library.load()
    assert library is not None
    return library
