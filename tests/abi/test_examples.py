"""The C in examples/ and docs/ compiles and does what it says."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.abi.conftest import ROOT, compile_c, run

if TYPE_CHECKING:
    from pathlib import Path

DOCS = [ROOT / "README.md", ROOT / "docs/c-api.md", ROOT / "docs/embedding.md"]
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in DOCS
    for number, block in enumerate(re.findall(r"^```c\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL), 1)
]


@pytest.fixture(scope="module")
def chat(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built by its own Makefile."""
    program = tmp_path_factory.mktemp("chat") / "chat"
    result = run(["make", "-C", ROOT / "examples/c", f"OUT={program}"])
    assert result.returncode == 0, result.stderr
    return program


def test_docs_have_c() -> None:
    """The documents show code, so that the tests below are not empty."""
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_c_in_docs_compiles(block: str, tmp_path: Path, library: Path) -> None:
    """Each C block of the documents is a whole program and compiles without a warning."""
    source = tmp_path / "block.c"
    source.write_text(block)
    compile_c(source, tmp_path / "block", "-std=c11", "-D_GNU_SOURCE", f"-L{library.parent}", "-llib_mlx", "-ldl")


def test_chat_streams_an_answer(chat: Path, crafted: Path) -> None:
    """The demo prints progress, the model's text, its speed, how a cancelled request ended, and the freed memory."""
    result = run([chat, crafted, "hello"])
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"(loading: \d+ % \(\w+\)\n)+", result.stderr)
    text, figures = result.stdout.strip().split("\n\n")
    assert text == "Hello, I am a crafted model."
    speed, cancelled, memory = figures.splitlines()
    assert re.fullmatch(r"9 tokens, [\d.]+ tokens/s, first token after \d+\.\d\d s", speed)
    assert cancelled == "a long answer: in flight 1, cancelled: in flight 0"
    assert re.fullmatch(r"unloaded: \d+ MB, then \d+ MB", memory)


def test_chat_prints_any_character(chat: Path, crafted: Path) -> None:
    """Text outside ASCII arrives whole, whether the server escapes it or not."""
    assert run([chat, crafted, "unicode"]).stdout.startswith("café 日本語 👩\u200d💻")


@pytest.mark.parametrize(("name", "code"), [("none", "model_not_found"), ("damaged", "corrupt_model")])
def test_chat_reports_errors(chat: Path, crafted: Path, tmp_path: Path, name: str, code: str) -> None:
    """An error, of the call or of the load, ends the demo with status 1 and code, message and hint on stderr."""
    if name == "damaged":
        shutil.copytree(crafted, tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(b"nothing")
    result = run([chat, tmp_path / name])
    assert (result.returncode, result.stdout) == (1, "")
    assert re.search(rf"^{code}: .+\. .+$", result.stderr, re.MULTILINE)


@pytest.mark.model
def test_chat_with_a_real_model(chat: Path, smollm2: Path) -> None:
    """SmolLM2 answers through the demo."""
    result = run([chat, smollm2, "What is the capital of France?"])
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
