"""The C in examples/ and docs/ compiles and does what it says."""

from __future__ import annotations

import re
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
    """The demo prints the model's text, then tokens, tokens per second and the time to the first token."""
    result = run([chat, crafted, "hello"])
    assert (result.returncode, result.stderr) == (0, "")
    text, figures = result.stdout.strip().split("\n\n")
    assert text == "Hello, I am a crafted model."
    assert re.fullmatch(r"9 tokens, [\d.]+ tokens/s, first token after \d+\.\d\d s", figures)


def test_chat_prints_any_character(chat: Path, crafted: Path) -> None:
    """Text outside ASCII arrives whole, whether the server escapes it or not."""
    assert run([chat, crafted, "unicode"]).stdout.startswith("café 日本語 👩\u200d💻")


def test_chat_reports_errors(chat: Path, tmp_path: Path) -> None:
    """An error ends the demo with status 1 and the error's JSON on stderr."""
    result = run([chat, tmp_path / "none"])
    assert (result.returncode, result.stdout) == (1, "")
    assert '"code": "model_not_found"' in result.stderr


@pytest.mark.model
def test_chat_with_a_real_model(chat: Path, smollm2: Path) -> None:
    """SmolLM2 answers through the demo."""
    result = run([chat, smollm2, "What is the capital of France?"])
    assert (result.returncode, result.stderr) == (0, "")
    assert "Paris" in result.stdout
