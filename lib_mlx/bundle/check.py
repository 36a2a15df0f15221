"""Checking a bundle: is it whole, does it need anything outside, does it work."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from lib_mlx.bundle import binaries
from lib_mlx.bundle.bundle import MANIFEST, PACKAGE, PYTHON, describe
from lib_mlx.bundle.interpreter import NAME
from lib_mlx.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

_TRIAL_S = 300
_TRIAL = """
import ctypes, sys
root, model = sys.argv[1], sys.argv[2]
sys.path.insert(0, root)
import lib_mlx
call = ctypes.CDLL(root + "/lib_mlx/liblib_mlx.so").lib_mlx_load_model
call.restype = ctypes.c_char_p
if b'"invalid_argument"' not in (answer := call(b"{}")):
    print("liblib_mlx.so answers", answer.decode())
if model:
    with lib_mlx.load_model(model) as loaded, loaded.start_server():
        loaded.generate("hello", max_tokens=1)
else:
    import lib_mlx.engine.engine, lib_mlx.server.listener, llguidance, numpy
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None) or root
    if not file.startswith(root):
        print(f"{module.__name__} comes from {file}")
system = ("/lib", "/usr/lib", "/dev", "/memfd", root)
for line in open("/proc/self/maps"):
    file = line.split(maxsplit=5)[5].strip() if line.count("/") else ""
    if ".so" in file and not file.startswith(system):
        print(f"{file} is in use")
"""


def check(path: Path) -> list[str]:
    """Return what is wrong with the bundle at `path`: nothing, if it can be shipped. Blocks while it is tried.

    Raises:
        InvalidArgument: that is no bundle.
    """
    path = path.resolve()
    try:
        known = dict(json.loads((path / MANIFEST).read_text())["files"])
    except (OSError, ValueError, LookupError, TypeError):
        raise InvalidArgument(f"{path} is no bundle.", hint="lib-mlx bundle DIR makes one.", param="dir") from None
    faults = _changes(path, known) + binaries.faults(path)
    faults += [f"{link.relative_to(path)} is a link" for link in path.rglob("*") if link.is_symlink()]
    return faults or _try(path)


def _changes(path: Path, known: dict[str, list[int | str]]) -> list[str]:
    here = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    faults = [f"{name} is missing" for name in sorted(known.keys() - here)]
    faults += [f"{name} was added" for name in sorted(here - known.keys())]
    return faults + [
        f"{name} was changed" for name in sorted(here & known.keys()) if describe(path / name) != known[name]
    ]


def _try(path: Path) -> list[str]:
    """Call the library, load, serve and generate in the bundle's own Python, without any environment."""
    model = next(path.glob("models/*"), None)
    command = [path / PYTHON / "bin" / NAME, "-I", "-c", _TRIAL, path, model or ""]
    try:
        done = subprocess.run(  # noqa: S603 - the bundle's own Python
            [str(part) for part in command],
            env={},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=_TRIAL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"{path / PACKAGE} does not work: {error}"]
    failed = [f"it does not work: {done.stderr.strip()[-500:]}"] if done.returncode else []
    return failed + done.stdout.splitlines()
