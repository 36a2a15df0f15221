"""What programs are built with: pkg-config, CMake, `lib-mlx config`, wheels; all of it moves as a folder."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import build_ffi
from tests.abi.conftest import ROOT, SOURCES, expect, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.abi.conftest import Result

VERSION_C = SOURCES / "version.c"
CMAKE = Path(sys.executable).with_name("cmake")
PROJECT = """
cmake_minimum_required(VERSION 3.16)
project(host C)
find_package(lib_mlx {version} REQUIRED)
add_executable(host {source})
target_link_libraries(host lib_mlx::lib_mlx)
"""


@pytest.fixture
def moved(library: Path, tmp_path: Path) -> Path:
    """A package's native files in another place, whose name is unkind."""
    place = tmp_path / "a b" / "lib_mlx"
    for path in build_ffi.main():
        copy = place / path.relative_to(library.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return place


def with_python() -> dict[str, str]:
    """The environment, and where the Python is that a moved library does not find by itself."""
    return {**os.environ, "LIB_MLX_HOME": sys.prefix}


def check_version(result: Result) -> None:
    """The program has found the library, which told its version."""
    assert (result.returncode, result.stderr) == (0, "")
    assert f'"version": "{build_ffi.VERSION}"' in result.stdout


def test_soname_has_the_abi_version(library: Path) -> None:
    """A program that was linked asks for liblib_mlx.so.1, which is there and leads to the library."""
    if sys.platform == "darwin":
        pytest.skip("Mach-O keeps versions inside the file")
    soname = re.findall(r"SONAME.*\[(.*)\]", run(["readelf", "-d", library]).stdout)
    assert soname == [f"liblib_mlx.so.{build_ffi.ABI}"]
    assert library.with_name(soname[0]).is_file()


def test_both_names_are_one_library(library: Path, tmp_path: Path) -> None:
    """A process that is linked with the library and opens it by another name has it once."""
    source = tmp_path / "twice.c"
    source.write_text(
        "#include <dlfcn.h>\n#include <lib_mlx.h>\n"
        "int main(int argc, char **argv) { void *here = (void *)lib_mlx_version; (void)argc;"
        ' return here != dlsym(dlopen(argv[1], RTLD_NOW | RTLD_LOCAL), "lib_mlx_version"); }\n'
    )
    flags = [f"-I{library.parent / 'include'}", f"-L{library.parent}", f"-Wl,-rpath,{library.parent}", "-llib_mlx"]
    assert run(["cc", source, "-o", tmp_path / "twice", *flags, "-ldl"]).returncode == 0
    for name in (library, f"{library}.{build_ffi.ABI}", f"liblib_mlx.so.{build_ffi.ABI}"):
        expect(run([tmp_path / "twice", name]))


def test_pkg_config(moved: Path, tmp_path: Path) -> None:
    """lib_mlx.pc gives flags that compile and link wherever the folder is."""
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config here")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(moved / "share/pkgconfig")}
    version = run(["pkg-config", "--modversion", "lib_mlx"], env=environment).stdout.strip()
    assert version == build_ffi.VERSION
    built = run(
        ["sh", "-c", f"eval cc {VERSION_C} $(pkg-config --cflags --libs lib_mlx) -o {tmp_path}/host"], environment
    )
    assert built.returncode == 0, built.stderr
    check_version(run([tmp_path / "host"], {**with_python(), "LD_LIBRARY_PATH": str(moved)}))


def test_the_documents_commands(library: Path, tmp_path: Path) -> None:
    """What docs/c-api.md has a shell do compiles its first program; its CMake lines name the target and version."""
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config here")
    assert library.is_file()
    text = (ROOT / "docs/c-api.md").read_text()
    program = re.findall(r"^```c\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    commands = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "host.c").write_text(program)
    for block in commands[:2]:
        command = block.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
        built = run(["sh", "-ec", command], cwd=tmp_path)
        assert built.returncode == 0, built.stderr
        assert run(["ldd", tmp_path / "host"]).stdout.count("not found") == 0
        (tmp_path / "host").unlink()
    for line in PROJECT.format(version="0.1", source="").splitlines():
        if "lib_mlx" in line:
            assert line in text


@pytest.mark.parametrize(("version", "found"), [("0.1", True), ("0.1.0 EXACT", True), ("9", False)])
def test_cmake(moved: Path, tmp_path: Path, version: str, found: bool) -> None:
    """find_package(lib_mlx) gives a target that compiles, links and runs; a version that is too new is refused."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(PROJECT.format(version=version, source=VERSION_C))
    configured = run([CMAKE, "-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={moved}"])
    assert (configured.returncode == 0) == found, configured.stderr
    if found:
        built = run([CMAKE, "--build", project / "build"])
        assert built.returncode == 0, built.stdout + built.stderr
        check_version(run([project / "build/host"], with_python()))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout."""
    pytest.importorskip("hatchling")
    directory = tmp_path_factory.mktemp("wheel")
    result = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    (made,) = directory.glob("*.whl")
    return made


def test_a_wheels_files(library: Path, wheel: Path) -> None:
    """A wheel is tagged for its Python and platform and carries what a C developer needs."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.search(rf"-{tag}-{tag}-(linux|macosx)\w*\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    backend = f"lib_mlx/_backend_{tag}.so"
    texts = {
        "include/lib_mlx.h",
        "include/lib_mlx.hpp",
        "share/pkgconfig/lib_mlx.pc",
        "share/cmake/lib_mlx/lib_mlxConfig.cmake",
    }
    assert {f"lib_mlx/{library.name}", backend, "lib_mlx/abi.py", *(f"lib_mlx/{text}" for text in texts)} <= names
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "lib_mlx/server/web").iterdir() if path.is_file()}
    assert page <= names
    assert [name for name in names if name.startswith("lib_mlx/_backend")] == [backend]
    assert ("lib_mlx/_cpu.so" in names) == build_ffi.HAS_CPU


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with the wheel in it, and the other packages of this one."""
    directory = tmp_path_factory.mktemp("environments") / "a new one"
    venv.create(directory, symlinks=True, with_pip=True)
    installed = run([directory / "bin/python", "-m", "pip", "install", "--no-index", "--no-deps", wheel])
    assert installed.returncode == 0, installed.stderr
    site = Path(sysconfig.get_path("purelib", vars={"base": str(directory), "platbase": str(directory)}))
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not (site / package.name).exists() and "lib_mlx" not in package.name:
            (site / package.name).symlink_to(package)
    yield directory
    shutil.rmtree(directory)


def test_a_wheel_in_a_new_environment(environment: Path, crafted: Path, tmp_path: Path) -> None:
    """A C host is built with what `lib-mlx config` says, and runs without any environment, on that environment."""
    flags = run([environment / "bin/lib-mlx", "config", "--cflags", "--libs"], cwd=tmp_path)
    assert flags.returncode == 0, flags.stderr
    assert str(environment) in flags.stdout
    life = SOURCES / "life.c"
    built = run(["sh", "-c", f"cc -D_GNU_SOURCE {life} {flags.stdout.strip()} -o {tmp_path}/life"])
    assert built.returncode == 0, built.stderr
    expect(run(["env", "-i", tmp_path / "life", crafted]))
    expect(run(["env", "-i", tmp_path / "life", crafted, '"isolation": "process",']))
