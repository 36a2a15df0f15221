from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python(code: str) -> str:
    """Run `code` in a fresh interpreter; return what it prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return result.stdout


def test_layers_import_downward_only() -> None:
    """The contracts of pyproject.toml hold: no layer imports one above it, the server never touches MLX."""
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_lib_mlx_imports_nothing_heavy() -> None:
    """`import lib_mlx` brings neither MLX nor a tokenizer, an HTTP server or pydantic."""
    loaded = set(json.loads(python("import sys, json, lib_mlx; print(json.dumps(list(sys.modules)))")))
    heavy = {"mlx", "mlx_lm", "transformers", "numpy", "pydantic", "starlette", "uvicorn", "huggingface_hub", "typer"}
    assert not {module.partition(".")[0] for module in loaded} & heavy


def test_importing_lib_mlx_is_quick() -> None:
    """`import lib_mlx` takes under 0.1 s beyond the interpreter's own start (the best of five)."""
    timed = "import time; start = time.perf_counter(); import lib_mlx; print(time.perf_counter() - start)"
    assert min(float(python(timed)) for _ in range(5)) < 0.1


def test_the_command_line_starts_quickly() -> None:
    """`lib-mlx --version` loads neither MLX nor a tokenizer."""
    code = "import sys; import lib_mlx.cli as c; c.app(['--version'], standalone_mode=False); print(*sys.modules)"
    output = python(code)
    assert output.startswith("lib-mlx ")
    assert not {name.partition(".")[0] for name in output.split()} & {"mlx", "transformers", "numpy"}


def test_the_scripts_are_executable() -> None:
    """`.ci/run` and the tools can be run from a fresh clone."""
    assert all(os.access(ROOT / script, os.X_OK) for script in (".ci/run", "tools/find_python.sh", "tools/sync.sh"))
