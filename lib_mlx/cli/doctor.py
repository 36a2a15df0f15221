"""`lib-mlx doctor`: what was found on this machine, what is wrong, and how to fix it."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import typer

from lib_mlx.cli.service import Json  # noqa: TC001 - typer reads the annotations
from lib_mlx.errors import LibMlxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LITTLE_MEMORY = 2 << 30
_LITTLE_DISK = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "warning", "wrong"]
    found: str
    fix: str = ""


def doctor(as_json: Json = False) -> None:
    """Tell what is on this machine: Python, library, device, BLAS, memory, disk, settings, services. 1 if wrong."""
    findings = [finding for look in _LOOKS for finding in _guarded(look)]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    for finding in [] if as_json else findings:
        typer.echo(f"{finding.state:8} {finding.what:9} {finding.found}")
        if finding.fix:
            typer.echo(f"{'':18} fix: {finding.fix}")
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except LibMlxError as error:
        yield Finding(look.__name__.strip("_"), "wrong", error.message, error.hint)
    except Exception as error:  # noqa: BLE001 - whatever is wrong is what is asked for
        yield Finding(look.__name__.strip("_"), "wrong", f"{type(error).__name__}: {error}")


def _python() -> Iterator[Finding]:
    found = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    yield Finding("python", "ok", f"{found}; {platform.system()} {platform.machine()}")


def _library() -> Iterator[Finding]:
    from lib_mlx.installation import installation

    library = installation().library
    version = ctypes.CDLL(str(library)).lib_mlx_version
    version.restype = ctypes.c_char_p
    told = json.loads(version())
    yield Finding("library", "ok", f"{library}, version {told['version']}, ABI {told['abi_version']}")
    backend = library.with_name(f"_backend_cp3{sys.version_info.minor}.so")
    if not backend.is_file():
        yield Finding("library", "wrong", f"There is no {backend.name}.", "Run build_ffi.py with this Python.")


def _device() -> Iterator[Finding]:
    from importlib.metadata import version

    from lib_mlx.engine.imports import import_on_worker
    from lib_mlx.engine.worker import get_worker

    back_ends = [name for name in ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13") if _is_installed(name)]
    if len(back_ends) > 1:
        yield Finding(
            "mlx",
            "wrong",
            f"{' and '.join(back_ends)} are installed, which have the same files.",
            f"pip uninstall {' '.join(back_ends)}; pip install 'lib-mlx[cpu]' or 'lib-mlx[cuda]'",
        )
    import_on_worker("mlx.core")
    device, blas = get_worker().run(_look_at_mlx)
    yield Finding("mlx", "ok", f"{version('mlx')} on the {device}; mlx-lm {version('mlx-lm')}")
    if device == "cpu" and sys.platform == "linux":
        if blas:
            yield Finding("blas", "ok", f"{blas} in place of MLX's own; {_instructions()}")
        else:
            yield Finding("blas", "warning", "MLX's own, which is slow.", "Reinstall numpy and lib-mlx from wheels.")


def _is_installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _look_at_mlx() -> tuple[str, str | None]:
    """On the engine thread, which owns MLX."""
    import mlx.core as mx

    from lib_mlx.engine import blas

    return str(mx.default_device().type).rpartition(".")[2], blas.bind()


def _instructions() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - a file of the kernel's
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return ""
    levels = [name for name in ("avx512f", "avx2") if name in flags]
    return f"{os.cpu_count()} CPUs with {levels[0] if levels else 'neither AVX2 nor AVX-512'}"


def _memory() -> Iterator[Finding]:
    from lib_mlx import memory

    available, total = memory.available_bytes(), memory.total_bytes()
    found = f"{available / 1e9:.1f} of {total / 1e9:.1f} GB are available"
    little = available < _LITTLE_MEMORY
    yield Finding("memory", "warning" if little else "ok", found, "Close other programs." if little else "")


def _disk() -> Iterator[Finding]:
    from lib_mlx.models import store
    from lib_mlx.models.folders import data_dir

    folder = data_dir()
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield Finding("store", "wrong", f"{there} cannot be written.", "Change its mode, or set LIB_MLX_DATA_DIR.")
    count = len(store.list_models())
    found = f"{folder}: {count} models with those of the Hugging Face cache, {free / 1e9:.1f} GB free"
    yield Finding("store", "warning" if free < _LITTLE_DISK else "ok", found, "" if count else "lib-mlx pull smollm2")


def _settings() -> Iterator[Finding]:
    from lib_mlx.settings import config_file, load_settings

    load_settings()
    yield Finding("settings", "ok", str(config_file() or "no file: defaults and environment"))


def _services() -> Iterator[Finding]:
    from lib_mlx.service.state import known_services

    for state in known_services():
        crashed = state.status == "crashed"
        found = f"{state.name} is {state.status}" + (f" at {state.base_url}" if state.status == "running" else "")
        fix = f"lib-mlx logs --name {state.name}; lib-mlx restart --name {state.name}"
        yield Finding("service", "warning" if crashed else "ok", found, fix if crashed else "")


_LOOKS = (_python, _library, _device, _memory, _disk, _settings, _services)
