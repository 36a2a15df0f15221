"""examples/python/ctypes_chat.py: the C library in a process that runs Python already."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.hosts.chat_program import ROOT, check_answer, check_errors, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.abi.conftest import Result

DIRECTORY = ROOT / "examples/python"
PROGRAM: list[object] = [sys.executable, "-W", "error", DIRECTORY / "ctypes_chat.py"]
PRELUDE = """
import sys, threading
from ctypes_chat import *
library = Library(default_library())
def code(call, *arguments, **keys):
    try:
        call(*arguments, **keys)
    except LibMlxError as error:
        return error.code
def load(): return library.load_model(model_path=sys.argv[1], model_id="chat")
"""


def host(script: str, *arguments: object) -> Result:
    """Run a script that imports the example."""
    return run([sys.executable, "-W", "error", "-c", PRELUDE + script, *arguments], cwd=DIRECTORY, env=environment())


def environment() -> dict[str, str]:
    """Ours, without bytecode beside the example."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(autouse=True)
def _built(library: Path) -> None:
    """The example finds the checkout's library by itself."""


def test_chat(crafted: Path) -> None:
    """The example shows progress, streams, cancels and reports the memory."""
    check_answer(run([*PROGRAM, crafted, "hello"]), "Hello, I am a crafted model.", 9)
    check_answer(run([*PROGRAM, crafted, "unicode"]), "café 日本語 👩\u200d💻 ok", 12)


def test_chat_reports_errors(crafted: Path, tmp_path: Path) -> None:
    """An error ends the example with status 1 and its code, message and hint on stderr."""
    check_errors(PROGRAM, crafted, tmp_path)


def test_missing_library(crafted: Path) -> None:
    """A library that is not there is an error that names it."""
    result = run([*PROGRAM, crafted], env={**os.environ, "LIB_MLX_LIBRARY": "/no/liblib_mlx.so"})
    assert (result.returncode, result.stdout) == (1, "")
    assert "/no/liblib_mlx.so" in result.stderr


def test_mistakes(crafted: Path) -> None:
    """Errors of the library and of its server are exceptions with their codes."""
    result = host(
        """
assert code(library.load_model, model_path="/none") == "model_not_found"
assert code(library.load_model, model_pth="x") == "invalid_argument"
assert code(library.status, 99) == code(library.unload_model, -1) == "invalid_handle"
handle = load()
port = library.start_server(handle)["port"]
assert code(library.start_server, handle, prot=1) == "invalid_argument"
def begin(port, prompt):
    with chat(port, prompt, 8): pass
assert code(begin, port, "hello") is None
assert code(begin, port, 7) == "invalid_argument"
other = library.start_server(library.load_model(model_path=sys.argv[1], model_id="other"))["port"]
assert code(begin, other, "hello") == "model_not_found"
library.shutdown()
assert code(library.status, handle) == "invalid_handle"
assert library.status(load())["model"]["status"] == "ready"
""",
        crafted,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_threads_and_an_unload_under_a_stream(crafted: Path) -> None:
    """Threads call at once, also while others stream; an unload ends the streams; the host's exit is its own."""
    result = host(
        """
handle = load()
port, ended = library.start_server(handle)["port"], []
def read(prompt):
    try:
        with chat(port, prompt, 3000) as chunks:
            for chunk in chunks:
                begun.set()
    except (LibMlxError, http.client.HTTPException, OSError) as error:
        ended.append(error)
begun = threading.Event()
readers = [threading.Thread(target=read, args=("loop",)) for _ in range(3)]
callers = [threading.Thread(target=lambda: [library.status(handle) for _ in range(200)]) for _ in range(5)]
for thread in readers + callers: thread.start()
begun.wait()
for thread in callers: thread.join()
library.unload_model(handle)
for thread in readers: thread.join(5)
assert not any(thread.is_alive() for thread in readers)
assert code(library.status, handle) == "invalid_handle"
sys.exit(7)
""",
        crafted,
    )
    assert (result.returncode, result.stdout, result.stderr) == (7, "", "")


def test_code_in_the_readme_runs() -> None:
    """The README's Python runs beside the example and prints the version and the error's code."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (DIRECTORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    result = run([sys.executable, "-c", block], cwd=DIRECTORY, env=environment())
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"\d+\.\d+\.\d+\nmodel_not_found\n", result.stdout)


@pytest.mark.model
def test_chat_with_a_real_model(smollm2: Path) -> None:
    """SmolLM2 answers through the example."""
    result = run([*PROGRAM, smollm2, "What is the capital of France?"])
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
