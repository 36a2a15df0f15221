"""build_ffi.py: what it builds, when, and how it gets into wheels."""

from __future__ import annotations

import re
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

import build_ffi
from tests.abi.conftest import ROOT, run

if TYPE_CHECKING:
    from pathlib import Path


def test_a_second_build_does_nothing(library: Path) -> None:
    """What is up to date stays as it is, so that an editable install's re-sync is quick."""
    before = [path.stat() for path in build_ffi.main()]
    assert [path.stat() for path in build_ffi.main()] == before


def test_other_settings_replace_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with other settings puts new files in place and leaves the old ones whole: they may be in use."""
    outputs = build_ffi.main(tmp_path)
    with outputs[0].open("rb") as mapped:
        before = mapped.read()
        monkeypatch.setattr(build_ffi, "_build_prefix", lambda: "/some/other/prefix")
        assert build_ffi.main(tmp_path) == outputs
        mapped.seek(0)
        assert mapped.read() == before
    assert outputs[0].read_bytes() != before
    assert b"/some/other/prefix" in outputs[0].read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(outputs)


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler error is shown and no file appears."""
    monkeypatch.setenv("CFLAGS", "-Dchar=nonsense")
    with pytest.raises(SystemExit, match="nonsense"):
        build_ffi.main(tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_directory_of_the_builder_in_the_binaries(library: Path) -> None:
    """The throw-away sys.prefix of a PEP 517 build is not recorded; the base prefix, a last resort, is."""
    content = library.read_bytes()
    assert sys.base_prefix.encode() in content
    assert sys.prefix == sys.base_prefix or sys.prefix.encode() not in content


def test_wheel_holds_library_backend_and_header(library: Path, tmp_path: Path) -> None:
    """A wheel is tagged for its Python and platform and carries what a C developer needs."""
    pytest.importorskip("hatchling")
    result = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.search(rf"-{tag}-{tag}-(linux|macosx)\w*\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    backend = f"lib_mlx/_backend_{tag}.so"
    headers = {"lib_mlx/include/lib_mlx.h", "lib_mlx/include/lib_mlx.hpp"}
    assert {f"lib_mlx/{library.name}", backend, "lib_mlx/abi.py", *headers} <= names
    assert [name for name in names if name.startswith("lib_mlx/_backend")] == [backend]
    assert ("lib_mlx/_cpu.so" in names) == build_ffi.HAS_CPU
