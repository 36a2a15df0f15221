"""The native code under valgrind's memcheck: no answer is lost, nothing is read or written that is not ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

if TYPE_CHECKING:
    from tests.abi.conftest import Programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not shutil.which("valgrind"), reason="no valgrind here"),
]

OPTIONS = ["--leak-check=full", "--show-leak-kinds=definite", "--num-callers=40", "--xml=yes"]


def memcheck(programs: Programs, name: str, *arguments: object) -> list[str]:
    """Run a program; return what memcheck says about it and our libraries, as "kind in function"."""
    report = programs.directory / f"{name}.xml"
    command = ["valgrind", *OPTIONS, f"--xml-file={report}", programs.build(name), *arguments]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=500, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    errors = ET.parse(report).getroot().iter("error")
    places = [(error.findtext("kind"), responsible(error)) for error in errors]
    assert places  # Python's packages leak a little, which shows that memcheck looks
    ours = {name, "liblib_mlx.so", "_cpu.so"}
    return [f"{kind} in {function}" for kind, (file, function) in places if file in ours or file.startswith("_backend")]


def responsible(error: ET.Element) -> tuple[str, str]:
    """The file and function that called the C library or the allocator; the dynamic linker is nobody's."""
    for frame in error.iterfind("stack[1]/frame"):
        file = Path(frame.findtext("obj", "?")).name
        if not file.startswith(("vgpreload", "libc.so", "libc-")):
            return file, frame.findtext("fn", "?")
    return "?", "?"


def test_memcheck_sees_a_lost_answer(programs: Programs) -> None:
    """An answer that nobody releases is found, whether the library's C made it or its Python."""
    lost = memcheck(programs, "leaks")
    assert sorted(lost) == ["Leak_DefinitelyLost in _cffi_f_strdup", "Leak_DefinitelyLost in lib_mlx_version"]


@pytest.mark.parametrize(("name", "needs_model"), [("inputs", False), ("life", True)])
def test_memcheck_finds_nothing(programs: Programs, crafted: Path, name: str, needs_model: bool) -> None:
    """Bad inputs and a model's life leave no definite leak and no invalid access."""
    assert memcheck(programs, name, *([crafted] if needs_model else [])) == []
