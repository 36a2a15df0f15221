"""include/lib_mlx.hpp and the C++ example."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.hosts.chat_program import ROOT, check_answer, check_errors, run

SOURCES = Path(__file__).parent / "cpp"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror", f"-I{ROOT / 'include'}"]
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# Python and MLX keep what they have until the process ends.
SANITIZER_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
README = (ROOT / "examples/cpp/README.md").read_text()


@pytest.fixture(params=["g++", "clang++"])
def compiler(request: pytest.FixtureRequest) -> str:
    """Each C++ compiler of this machine."""
    if not shutil.which(request.param):
        pytest.skip(f"no {request.param} here")
    return str(request.param)


def compile_cpp(compiler: str, source: Path, output: Path, *flags: str) -> Path:
    """Compile a source with all warnings as errors."""
    result = run([compiler, *STRICT, source, *flags, "-o", output])
    assert result.returncode == 0, result.stderr
    return output


def link_flags(library: Path) -> list[str]:
    """What links a program with the library."""
    return [f"-L{library.parent}", "-llib_mlx", f"-Wl,-rpath,{library.parent}", "-pthread"]


def expect_silence(command: list[object], env: dict[str, str]) -> None:
    """Run a test program: it says what is wrong, else nothing."""
    result = run(command, env={**os.environ, **env})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
@pytest.mark.parametrize("mode", ["", "-fno-exceptions -fno-rtti"])
def test_header_compiles_alone(compiler: str, standard: str, mode: str, tmp_path: Path) -> None:
    """The header needs nothing before it, in C++17 and C++20, with and without exceptions and RTTI."""
    compile_cpp(compiler, SOURCES / "alone.cpp", tmp_path / "alone.o", f"-std={standard}", *mode.split(), "-c")


def test_header_in_two_units(tmp_path: Path, library: Path) -> None:
    """Two units of one program may include the header."""
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    other = tmp_path / "other.cpp"
    other.write_text("#include <lib_mlx.hpp>\nbool other() { return lib_mlx::version().ok(); }\n")
    program = compile_cpp("g++", SOURCES / "alone.cpp", tmp_path / "alone", str(other), *link_flags(library))
    expect_silence([program], {})


@pytest.mark.parametrize("name", ["json", "answers"])
@pytest.mark.parametrize("mode", ["-std=c++17 -fno-exceptions -fno-rtti", "-std=c++20"])
def test_reader_and_results(compiler: str, name: str, mode: str, tmp_path: Path) -> None:
    """JSON is read strictly and written safely, every answer becomes a value or an error, every string is freed."""
    program = compile_cpp(compiler, SOURCES / f"{name}.cpp", tmp_path / name, *mode.split(), *SANITIZED)
    expect_silence([program], {})


def test_numbers_obey_no_locale(tmp_path: Path) -> None:
    """In a locale with a decimal comma the JSON has a point."""
    if not shutil.which("localedef") or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("no locale with a comma can be made here")
    made = run(["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"])
    assert made.returncode == 0, made.stderr
    compiler = next(filter(shutil.which, ["g++", "clang++"]))
    program = compile_cpp(compiler, SOURCES / "json.cpp", tmp_path / "json", "-std=c++17")
    expect_silence([program, "de_DE.UTF-8"], {"LOCPATH": str(tmp_path)})


def test_life(compiler: str, library: Path, crafted: Path, tmp_path: Path) -> None:
    """Loads, servers, errors, moves, threads, an unload under a stream and a shutdown go as the header says."""
    program = compile_cpp(compiler, SOURCES / "life.cpp", tmp_path / "life", *SANITIZED, *link_flags(library))
    expect_silence([program, crafted], SANITIZER_OPTIONS)


def test_every_code_has_a_name() -> None:
    """The codes that lib_mlx.h lists are constants of the C++ header, spelled alike."""
    listed = (ROOT / "include/lib_mlx.h").read_text().split("/* Error codes.")[1].split("A code once")[0]
    header = (ROOT / "include/lib_mlx.hpp").read_text()
    constants = re.findall(r'^inline constexpr std::string_view (\w+) = "(\w+)";', header, re.MULTILINE)
    assert all(name == value for name, value in constants)
    assert set(re.findall(r"^ \*     (\w+) ", listed, re.MULTILINE)) <= {name for name, _ in constants}


def test_code_in_the_readme_compiles(compiler: str, library: Path, tmp_path: Path) -> None:
    """The README's example is a whole program, built by the command beside it."""
    blocks = re.findall(r"^```cpp\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        source = tmp_path / "host.cpp"
        source.write_text(block)
        compile_cpp(compiler, source, tmp_path / "host", "-std=c++17", *link_flags(library))


@pytest.fixture(scope="module")
def chat(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built by its own Makefile."""
    if not shutil.which("make") or not shutil.which("c++"):
        pytest.skip("no make or C++ compiler here")
    program = tmp_path_factory.mktemp("chat") / "chat"
    result = run(["make", "-C", ROOT / "examples/cpp", f"OUT={program}", f"LIB_MLX={library.parent}"])
    assert result.returncode == 0, result.stderr
    return program


def test_chat(chat: Path, crafted: Path) -> None:
    """The example shows progress, streams, cancels and reports the memory."""
    check_answer(run([chat, crafted, "hello"]), "Hello, I am a crafted model.", 9)
    check_answer(run([chat, crafted, "unicode"]), "café 日本語 👩\u200d💻 ok", 12)


def test_chat_reports_errors(chat: Path, crafted: Path, tmp_path: Path) -> None:
    """An error ends the example with status 1 and its code, message and hint on stderr."""
    check_errors([chat], crafted, tmp_path)


@pytest.mark.model
def test_chat_with_a_real_model(chat: Path, smollm2: Path) -> None:
    """SmolLM2 answers through the example."""
    result = run([chat, smollm2, "What is the capital of France?"])
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
