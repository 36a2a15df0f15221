"""The Swift package: built once, its own tests and its example run against the library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hosts.contract import CONFIGS, check_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bindings/swift"
SOURCES = PACKAGE / "Sources/LibMlx"

toolchain = pytest.mark.skipif(shutil.which("swift") is None, reason="no Swift toolchain")


def run(*command: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in the package."""
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(env or {})},
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )


@pytest.fixture(scope="module")
def scratch(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a build without warnings."""
    folder = tmp_path_factory.mktemp("swift")
    done = run("make", "build", f"SCRATCH={folder}", f"LIB_MLX={library.parent}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning:" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def chat(scratch: Path) -> Path:
    """The example."""
    return scratch / "debug/lib-mlx-chat"


@toolchain
@pytest.mark.slow
def test_package(scratch: Path, library: Path, crafted: Path) -> None:
    """The package's own tests pass with the library and a crafted checkpoint, and none is skipped."""
    environment = {"LIB_MLX_TEST_MODEL": str(crafted)}
    done = run("make", "test", f"SCRATCH={scratch}", f"LIB_MLX={library.parent}", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Test run with \d+ tests in \d+ suites passed", done.stdout)
    assert "skipped" not in done.stdout


@toolchain
@pytest.mark.slow
def test_example(chat: Path, crafted: Path) -> None:
    """The example shows the load's progress, streams the answer, cancels a stream, and reports the memory."""
    done = run(chat, crafted, "hello")
    assert (done.returncode, done.stderr) == (0, "")
    *loading, server, answer, cancelled, memory = done.stdout.splitlines()
    assert all(re.fullmatch(r"loading: \d+ % \w*", line) for line in loading)
    assert loading
    assert re.fullmatch(r"server: http://127\.0\.0\.1:\d+", server)
    assert answer == "Hello, I am a crafted model."
    assert cancelled == "cancelled after 5 pieces, in flight: 0"
    assert re.fullmatch(r"memory: \d+ bytes before, \d+ after", memory)


@toolchain
@pytest.mark.slow
def test_example_prints_any_character(chat: Path, crafted: Path) -> None:
    """Text outside ASCII arrives whole."""
    assert "café 日本語 👩\u200d💻 ok" in run(chat, crafted, "unicode").stdout.splitlines()


@toolchain
@pytest.mark.slow
def test_example_reports_errors(chat: Path, tmp_path: Path) -> None:
    """An error ends the example with status 1; its code, message and hint are on stderr."""
    done = run(chat, tmp_path / "none")
    assert done.returncode == 1
    code, message, hint = done.stderr.splitlines()
    assert code == "model_not_found"
    assert str(tmp_path / "none") in message
    assert hint


@toolchain
@pytest.mark.slow
@pytest.mark.model
def test_example_with_a_real_model(chat: Path, smollm2: Path) -> None:
    """SmolLM2 answers through the example."""
    done = run(chat, smollm2, "What is the capital of France?")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout


@toolchain
@pytest.mark.slow
def test_readme(scratch: Path, tmp_path: Path) -> None:
    """The README's program compiles."""
    blocks = re.findall(r"^```swift\n(.*?)^```", (PACKAGE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    program = tmp_path / "main.swift"
    program.write_text(blocks[0])
    includes = [f"-I{scratch / 'debug/Modules'}", f"-I{PACKAGE / 'Sources/CLibMlx'}", "-Xcc", f"-I{ROOT / 'include'}"]
    done = run("swiftc", "-typecheck", "-swift-version", "6", *includes, program)
    assert (done.returncode, done.stderr) == (0, "")


@toolchain
def test_format() -> None:
    """The sources are as swift-format leaves them."""
    done = run("swift", "format", "lint", "--strict", "--recursive", "Package.swift", "Sources", "Tests", "Examples")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_is_reachable(config: str) -> None:
    """Swift's configurations have the library's keys; `wait` is what `startLoading` and `load` differ in."""
    sources = "\n".join((SOURCES / name).read_text() for name in ("LoadConfig.swift", "ServerConfig.swift"))
    body = re.search(rf"^public struct {config}\b.*?^}}", sources, re.MULTILINE | re.DOTALL)
    assert body
    names = re.findall(r"public var (\w+):", body[0])
    keys = {re.sub(r"(?<=[a-z])[A-Z]+", lambda hump: f"_{hump[0].lower()}", name) for name in names}
    check_keys(config, keys | ({"wait"} if config == "LoadConfig" else set()))


def test_every_code_is_named() -> None:
    """Each code of the header has a name in Swift."""
    header = (ROOT / "include/lib_mlx.h").read_text().partition("Error codes.")[2]
    codes = set(re.findall(r"^ \*     ([a-z_]+) {2,}", header, re.MULTILINE))
    named = set(re.findall(r'Self\(rawValue: "(\w+)"\)', (SOURCES / "LibMlxError.swift").read_text()))
    assert codes
    assert codes <= named
