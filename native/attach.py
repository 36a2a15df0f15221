"""Embedded into the backend; runs once, when it attaches to Python: connects `lm_dispatch` to `lib_mlx.abi`.

An exception here would be printed by cffi and lost; it is handed to C instead, which answers with it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _lib_mlx_ffi import ffi, lib


def prefer_own_package() -> None:
    """Put the package this library belongs to on sys.path, so that no other installed copy is taken."""
    library = ffi.string(lib.lm_library).decode("utf-8", "surrogateescape")
    for path in (Path(library), Path(library).resolve()):
        package, root = path.parent, str(path.parent.parent)
        if package.name == "lib_mlx" and (package / "abi.py").exists() and root not in sys.path:
            # The order of a host's own sys.path is the host's business.
            sys.path.insert(0 if lib.lm_owns_python else len(sys.path), root)


def attach() -> Callable[[int, int, bytes | None], bytes]:
    """Return `abi.dispatch`, connected to C."""
    prefer_own_package()
    from lib_mlx import abi

    if lib.lm_backend_abi != abi.BACKEND_ABI:
        raise ImportError("the native library and the Python package are of different versions; run build_ffi.py")
    if lib.lm_owns_python:
        abi.own_interpreter()

    def publish(handle: int, status: bytes | None) -> None:
        lib.lm_publish(handle, ffi.NULL if status is None else status)

    abi.attach(publish, model_ready=lib.lm_model_ready)
    return abi.dispatch


@ffi.def_extern(onerror=lambda *_: None)  # type: ignore[untyped-decorator]  # cffi's, generated
def lm_dispatch(operation: int, handle: int, json: Any) -> Any:
    """Answer in memory that C's free() releases."""
    raw = None if json == ffi.NULL else ffi.string(json)
    return lib.strdup(dispatch(operation, handle, raw))


try:
    dispatch = attach()
except BaseException as error:  # noqa: BLE001 - whatever it is, C must hear of it
    lib.lm_attach_failed(f"{type(error).__name__}: {error} (Python in {sys.prefix})".encode("utf-8", "replace"))
