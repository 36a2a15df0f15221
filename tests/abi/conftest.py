"""The library, built once, and C programs compiled against it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent / "c"
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")

Result: TypeAlias = subprocess.CompletedProcess[str]


class Programs:
    """The programs of tests/abi/c, compiled at their first use."""

    def __init__(self, library: Path, directory: Path, flags: tuple[str, ...] = ()) -> None:
        self.library = library
        self.directory = directory
        self.flags = flags

    def build(self, name: str) -> Path:
        """Compile and link `name`.c; return the program."""
        program = self.directory / name
        if not program.exists():
            link = [f"-L{self.library.parent}", "-llib_mlx", f"-Wl,-rpath,{self.library.parent}"]
            link += ["-ldl", "-lm", "-pthread"]
            compile_c(SOURCES / f"{name}.c", program, "-std=c11", "-D_GNU_SOURCE", "-g", *self.flags, *link)
        return program

    def run(
        self,
        name: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        library: Path | None = None,
    ) -> Result:
        """Run a program to its end. `env` is added to the environment; `library` replaces the linked one."""
        environment = {**os.environ, **(env or {})}
        if library is not None:
            environment["LD_LIBRARY_PATH"] = str(library.parent)
        return run([self.build(name), *arguments], env=environment, cwd=cwd)

    def check(self, name: str, *arguments: object, env: Mapping[str, str] | None = None, code: int = 0) -> None:
        """Run a program that must end with `code` and print nothing, nor may the library."""
        expect(self.run(name, *arguments, env=env), code)


def expect(result: Result, code: int = 0) -> None:
    """Demand an exit status and silence."""
    assert (result.returncode, result.stdout, result.stderr) == (code, "", "")


def run(command: list[object], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Result:
    """Run a command to its end, in a minute at most."""
    # errors: a host may print the bytes of a path that is not UTF-8.
    return subprocess.run(
        [str(part) for part in command],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )


def compile_c(source: Path, output: Path, *flags: str, compiler: str = "cc") -> None:
    """Compile one source with all warnings as errors."""
    command = [compiler, *STRICT, f"-I{ROOT / 'include'}", str(source), *flags, "-o", str(output)]
    result = run([*command])
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def programs(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The test programs, linked with the checkout's library."""
    return Programs(library, tmp_path_factory.mktemp("programs"))
