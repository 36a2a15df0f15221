"""What every language's example prints: `program MODEL_PATH [PROMPT]`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.abi.conftest import Result

ROOT = Path(__file__).resolve().parents[2]


def run(
    command: list[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 100
) -> Result:
    """Run a command to its end."""
    arguments = [str(part) for part in command]
    return subprocess.run(
        arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False, errors="replace"
    )


def check_answer(result: Result, text: str, tokens: int) -> None:
    """Demand progress, the answer's text, its figures, a cancelled request and the memory report."""
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"(loading: \d+ % \(\w+\)\n)+", result.stderr)
    answer, figures = result.stdout.strip().split("\n\n")
    assert answer == text
    speed, cancelled, memory = figures.splitlines()
    assert re.fullmatch(rf"{tokens} tokens, .*first token after \d+\.\d\d s", speed)
    assert cancelled == "a long answer: in flight 1, cancelled: in flight 0"
    assert re.fullmatch(r"unloaded: \d+ MB, then \d+ MB", memory)


def check_errors(program: list[object], crafted: Path, directory: Path) -> None:
    """Demand status 1 and code, message and hint on stderr for an error of the call and one of the load."""
    damaged = shutil.copytree(crafted, directory / "damaged")
    (damaged / "model.safetensors").write_bytes(b"nothing")
    for path, code in [(directory / "none", "model_not_found"), (damaged, "corrupt_model")]:
        result = run([*program, path])
        assert (result.returncode, result.stdout) == (1, ""), result.stderr
        assert re.search(rf"^{code}: .+\. .+$", result.stderr, re.MULTILINE)
