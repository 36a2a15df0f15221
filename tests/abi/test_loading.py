"""Getting the library into a process: linked, opened, moved, in hostile environments."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import build_ffi
from tests.abi.conftest import ROOT, Programs, Result, expect, run

if TYPE_CHECKING:
    import pytest


def test_linked(programs: Programs) -> None:
    """A linked library finds and starts Python at its first call."""
    programs.check("first_call")


def test_version_starts_no_python(programs: Programs) -> None:
    """lib_mlx_version names library, Python and MLX without loading a libpython."""
    answer = json.loads(programs.run("version").stdout)
    assert answer["ok"] is True
    assert (answer["version"], answer["abi_version"]) == ("0.1.0", 1)
    assert answer["python_version"].startswith("3.")
    assert answer["mlx_version"].startswith("0.")


def test_dlopened_local_closed_and_opened_again(programs: Programs, library: Path) -> None:
    """The library works after dlopen(RTLD_LOCAL), dlclose and dlopen."""
    programs.check("dlopened", library)


def test_relative_dlopen_then_chdir(programs: Programs, library: Path) -> None:
    """A library opened by a relative path is not lost when the host changes directory before its first call."""
    expect(programs.run("dlopened", f"./{library.name}", "/", cwd=library.parent))


def test_symlinked_library(programs: Programs, library: Path, tmp_path: Path) -> None:
    """A symlink to the library, with nothing beside it, is followed."""
    link = tmp_path / "lib" / library.name
    link.parent.mkdir()
    link.symlink_to(library)
    programs.check("dlopened", link)


def test_symlinked_package(programs: Programs, library: Path, tmp_path: Path) -> None:
    """A package whose every file is a symlink (uv's link mode) is found where the links are."""
    package = _copy_package(library, tmp_path / "site", link=True)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    expect(programs.run("first_call", library=package / library.name))


def test_moved_bundle_in_an_empty_environment(programs: Programs, library: Path, tmp_path: Path) -> None:
    """A bundle moved to a path with spaces and accents starts under `env -i` and LANG=C."""
    bundle = tmp_path / "Bundle moved é" / "App"
    package = _copy_package(library, bundle / "lib")
    (bundle / "Resources").mkdir()
    (bundle / "Resources/python").symlink_to(ROOT / ".venv")
    expect(run(["env", "-i", "LANG=C", programs.build("dlopened"), package / library.name]))


def test_empty_environment(programs: Programs) -> None:
    """The library needs no environment variable: PATH and HOME least of all."""
    expect(run(["env", "-i", programs.build("first_call")]))


def test_python_variables_are_ignored(programs: Programs) -> None:
    """PYTHON* variables of the host, which would end a plain embedded Python, have no effect."""
    garbage = {
        "PYTHONHOME": "/x",
        "PYTHONPATH": "/x:/y",
        "PYTHONSTARTUP": "/x",
        "PYTHONINSPECT": "1",
        "PYTHONIOENCODING": "nonsense",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONVERBOSE": "1",
        "VIRTUAL_ENV": "/x",
        "PATH": "/x",
    }
    programs.check("first_call", env=garbage)


def test_lib_mlx_home_names_the_python(programs: Programs, library: Path, tmp_path: Path) -> None:
    """LIB_MLX_HOME is used before anything that is found."""
    package = _copy_package(library, tmp_path / "site")
    expect(_first_call(programs, package / library.name, home=ROOT / ".venv"))


def test_wrong_lib_mlx_home(programs: Programs, tmp_path: Path) -> None:
    """LIB_MLX_HOME without a Python is an error of every function, not a reason to search on."""
    programs.check("first_call", "python_not_found", env={"LIB_MLX_HOME": str(tmp_path)})
    programs.check("first_call", "python_not_found", env={"LIB_MLX_HOME": '/no such\n"directory" \xff'})


def test_prefix_without_standard_library(programs: Programs, tmp_path: Path) -> None:
    """A venv whose base is gone is an error, and the host lives."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").write_text(f"home = {tmp_path}/gone/bin\n")
    (tmp_path / f"bin/{_python_name()}").symlink_to("/bin/true")
    programs.check("first_call", "python_not_found", env={"LIB_MLX_HOME": str(tmp_path)})


def test_python_that_cannot_start(programs: Programs, tmp_path: Path) -> None:
    """A prefix whose standard library is empty makes Python's start fail, which is an answer too."""
    libraries = tmp_path / "lib"
    stdlib = libraries / _python_name()
    stdlib.mkdir(parents=True)
    (stdlib / "os.py").touch()
    shared = f"lib{_python_name()}.so.1.0"
    (libraries / shared).symlink_to(_libpython())
    # Python itself reports a fatal error of this kind on stderr before it returns.
    result = programs.run("first_call", "python_init", env={"LIB_MLX_HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr


def test_no_backend_for_the_python_found(programs: Programs, library: Path, tmp_path: Path) -> None:
    """A Python of a version without a backend is named in a `python_mismatch`."""
    package = _copy_package(library, tmp_path / "site")
    for backend in package.glob("_backend_*.so"):
        backend.unlink()
    expect(_first_call(programs, package / library.name, "python_mismatch", home=ROOT / ".venv"))


def test_no_python_at_all(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no Python has the packages, every function answers `python_not_found`."""
    monkeypatch.setattr(build_ffi, "_build_prefix", lambda: "/no/prefix")
    monkeypatch.setattr(build_ffi, "KERNEL_FLAGS", ("-O1",))  # which compiles in a tenth of the time
    library, *_ = build_ffi.main(tmp_path / "lib_mlx")
    expect(_first_call(programs, library, "python_not_found"))


def test_stale_python_package(programs: Programs, library: Path, tmp_path: Path) -> None:
    """A Python package of another version than the library is refused, not called."""
    package = _copy_package(library, tmp_path / "site")
    source = package / "abi.py"
    source.write_text(source.read_text().replace("BACKEND_ABI = 1", "BACKEND_ABI = 99"))
    expect(_first_call(programs, package / library.name, "python_init", home=ROOT / ".venv"))


def test_package_that_cannot_be_imported(programs: Programs, library: Path, tmp_path: Path) -> None:
    """An exception while the Python package is imported becomes an answer; nothing is printed."""
    package = _copy_package(library, tmp_path / "site")
    (package / "abi.py").write_text("raise SystemExit('broken é')\n")
    expect(_first_call(programs, package / library.name, "python_init", home=ROOT / ".venv"))


def test_libpython_loaded_by_somebody_else(programs: Programs) -> None:
    """A libpython that another plugin opened RTLD_LOCAL, and left uninitialised, is the one that is started."""
    programs.check("other_libpython", _libpython())


def test_retry_after_python_was_not_found(programs: Programs) -> None:
    """A host that sets LIB_MLX_HOME right after a failed search succeeds at its next call."""
    programs.check("retry", ROOT / ".venv", env={"LIB_MLX_HOME": "/nowhere"})


def _first_call(programs: Programs, library: Path, *arguments: str, home: Path | None = None) -> Result:
    env = {"LIB_MLX_HOME": str(home)} if home else None
    return programs.run("first_call", *arguments, env=env, library=library)


def _copy_package(library: Path, site: Path, *, link: bool = False) -> Path:
    """Copy the Python package with its library to another directory."""
    copy = os.symlink if link else shutil.copy2
    return shutil.copytree(
        library.parent, site / "lib_mlx", ignore=shutil.ignore_patterns("__pycache__"), copy_function=copy
    )


def _libpython() -> Path:
    """Return the running Python's shared library; Debian keeps it outside the prefix's lib/."""
    return Path(sysconfig.get_config_var("LIBDIR"), f"lib{_python_name()}.so.1.0")


def _python_name() -> str:
    return f"python3.{sys.version_info.minor}"
