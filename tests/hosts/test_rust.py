"""bindings/rust: the crates build without a warning, follow the header, and pass their tests with the library."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest

import build_ffi
from lib_mlx.config import LoadConfig, Profile, ServedModel, ServerConfig
from tests.hosts.chat_program import ROOT, check_answer, check_errors, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.abi.conftest import Result

CRATES = ROOT / "bindings/rust"
SYS = (CRATES / "lib_mlx-sys/src/lib.rs").read_text()
SAFE = CRATES / "lib_mlx/src"
HEADER = (ROOT / "include/lib_mlx.h").read_text()
TYPES = {"const char *": "*const c_char", "char *": "*mut c_char", "void *": "*mut c_void", "int64_t ": "i64"}

pytestmark = pytest.mark.timeout(600)


class Cargo:
    """cargo, with a target directory of its own and no network."""

    def __init__(self, target: Path, library: Path) -> None:
        self.target = target
        self.library = library

    def __call__(self, *arguments: str, **environment: str) -> Result:
        env = {**os.environ, "CARGO_TARGET_DIR": str(self.target), "LIB_MLX_LIB_DIR": str(self.library.parent)}
        return run(["cargo", *arguments], cwd=CRATES, env={**env, **environment}, timeout=500)


@pytest.fixture(scope="module")
def cargo(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Cargo:
    """Run cargo in the workspace."""
    if not shutil.which("cargo"):
        pytest.skip("no cargo here")
    return Cargo(tmp_path_factory.mktemp("cargo"), library)


@pytest.fixture(scope="module")
def chat(cargo: Cargo) -> Path:
    """The example."""
    result = cargo("build", "--offline", "--locked", "--example", "chat", RUSTFLAGS="-D warnings")
    assert result.returncode == 0, result.stderr
    return cargo.target / "debug/examples/chat"


def declarations() -> dict[str, tuple[list[str], str]]:
    """The header's functions: their parameters and results in Rust's words."""
    found = {}
    pattern = r"^LIB_MLX_API (char \*|void )(\w+)\(([^)]*)\);"
    for result, name, parameters in re.findall(pattern, HEADER, re.MULTILINE):
        given = [parameter.strip() for parameter in parameters.split(",") if parameter.strip() != "void"]
        parts = [re.fullmatch(r"(.*[* ])(\w+)", parameter) for parameter in given]
        rust = [f"{part[2]}: {TYPES[part[1]]}" for part in parts if part]
        assert len(rust) == len(given)
        found[name] = (rust, "" if result == "void " else f" -> {TYPES[result]}")
    return found


def test_declarations_are_the_headers() -> None:
    """Each function of the header is declared with its parameters and result, and nothing else is."""
    found = {
        name: (re.split(r",\s*", parameters) if parameters else [], result)
        for name, parameters, result in re.findall(r"^    pub fn (\w+)\(([^)]*)\)([^;]*);", SYS, re.MULTILINE)
    }
    assert found == declarations()
    assert len(found) == 10
    version = re.search(r'#define LIB_MLX_VERSION "(.*)"\n#define LIB_MLX_ABI_VERSION (\d+)', HEADER)
    assert version
    assert f'LIB_MLX_VERSION: &str = "{version[1]}"' in SYS
    assert f"LIB_MLX_ABI_VERSION: c_int = {version[2]};" in SYS


def test_every_key_has_a_builder() -> None:
    """The configurations have a method for each of the library's keys."""
    source = (SAFE / "config.rs").read_text()
    methods = set(re.findall(r"^ +(\w+)(?:: [\w<>]+)?,$", source, re.MULTILINE)) | {
        "model_path",
        "profiles",
        "adapters",
    }
    for kind in (LoadConfig, ServerConfig, ServedModel):
        assert set(kind.model_fields) <= methods
    assert "pub fn adapter(" in source
    assert all(f'"{bound}"' in source for bound in Profile.model_fields)


def test_every_code_is_typed() -> None:
    """The codes that the header lists are variants of ErrorCode."""
    listed = HEADER.split("/* Error codes.")[1].split("A code once")[0]
    typed = set(re.findall(r' = "(\w+)",', (SAFE / "error.rs").read_text()))
    assert set(re.findall(r"^ \*     (\w+) ", listed, re.MULTILINE)) <= typed


def test_format_and_lints(cargo: Cargo) -> None:
    """Rustfmt changes nothing, and clippy has nothing to say."""
    formatted = cargo("fmt", "--check")
    if "no such command" in formatted.stderr or "is not installed" in formatted.stderr:
        pytest.skip("no rustfmt here")
    assert formatted.returncode == 0, formatted.stdout
    result = cargo("clippy", "--offline", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings")
    if "no such command" in result.stderr or "is not installed" in result.stderr:
        pytest.skip("no clippy here")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_cargo_test(cargo: Cargo, crafted: Path) -> None:
    """Unit, integration and documentation tests pass, with the crafted model."""
    result = cargo("test", "--offline", "--locked", "--workspace", LIB_MLX_TEST_MODEL=str(crafted))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped:" not in result.stderr


@pytest.mark.slow
def test_documentation_builds(cargo: Cargo) -> None:
    """Every public item is documented, and no link leads nowhere."""
    result = cargo("doc", "--offline", "--locked", "--workspace", "--no-deps", RUSTDOCFLAGS="-D warnings")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", ["checkout", "pkg-config"])
def test_library_is_found(cargo: Cargo, library: Path, tmp_path: Path, place: str) -> None:
    """Without LIB_MLX_LIB_DIR pkg-config is asked, then the checkout's library is linked."""
    directory = library.parent
    if place == "pkg-config":
        if not shutil.which("pkg-config"):
            pytest.skip("no pkg-config here")
        directory = tmp_path
        for name in (library.name, build_ffi.VERSIONED):
            (tmp_path / name).symlink_to(library.with_name(name))
        (tmp_path / "lib_mlx.pc").write_text(f"libdir={tmp_path}\nName: lib_mlx\nDescription: .\nVersion: 0.1.0\n")
    target = cargo.target / place
    environment = {key: value for key, value in os.environ.items() if key != "LIB_MLX_LIB_DIR"}
    environment |= {"CARGO_TARGET_DIR": str(target), "PKG_CONFIG_PATH": str(tmp_path)}
    command: list[object] = ["cargo", "build", "--offline", "--locked", "--example", "chat"]
    result = run(command, cwd=CRATES, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    linked = run(["ldd", target / "debug/examples/chat"]).stdout
    assert f"{build_ffi.VERSIONED} => {directory / build_ffi.VERSIONED}" in linked


@pytest.mark.slow
def test_missing_library(cargo: Cargo) -> None:
    """A wrong LIB_MLX_LIB_DIR is an error of the build that names the library."""
    result = cargo("build", "--offline", "--locked", "--example", "chat", LIB_MLX_LIB_DIR="/does/not/exist")
    assert result.returncode != 0
    assert "-llib_mlx" in result.stderr


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
