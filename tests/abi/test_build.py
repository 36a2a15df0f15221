"""build_ffi.py: what it builds, when, and how it gets into wheels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import build_ffi

if TYPE_CHECKING:
    from pathlib import Path


def test_a_second_build_does_nothing(library: Path) -> None:
    """What is up to date stays as it is, so that an editable install's re-sync is quick."""
    before = [path.stat() for path in build_ffi.main()]
    assert [path.stat() for path in build_ffi.main()] == before


def test_other_settings_replace_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with other settings puts new files in place and leaves the old ones whole: they may be in use."""
    monkeypatch.setattr(build_ffi, "KERNEL_FLAGS", ("-O1",))  # which compiles in a tenth of the time
    outputs = build_ffi.main(tmp_path)
    with outputs[0].open("rb") as mapped:
        before = mapped.read()
        monkeypatch.setattr(build_ffi, "_build_prefix", lambda: "/some/other/prefix")
        assert build_ffi.main(tmp_path) == outputs
        mapped.seek(0)
        assert mapped.read() == before
    assert outputs[0].read_bytes() != before
    assert b"/some/other/prefix" in outputs[0].read_bytes()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(outputs)


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
