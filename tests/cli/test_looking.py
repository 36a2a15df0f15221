"""Commands that look: list, show, config, doctor, openapi; import, rm and verify; completion and speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command with folders of the test's own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LIB_MLX_STATE_DIR": str(tmp_path / "state"),
        "LIB_MLX_DATA_DIR": str(tmp_path / "data"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    environment.pop("LIB_MLX_CONFIG", None)

    command = str(Path(sys.executable).with_name("lib-mlx"))

    def call(*arguments: object, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [command, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
            env={**environment, **more},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


def test_the_store(run: Callable[..., subprocess.CompletedProcess[str]], crafted: Path, tmp_path: Path) -> None:
    """A directory is imported, listed, shown, verified and removed; a damaged file is named."""
    path = run("import", crafted, "--name", "mine").stdout.strip()
    (listed,) = json.loads(run("list", "--json").stdout)
    assert (listed["name"], listed["path"], listed["source"]) == ("mine", path, "store")
    assert "mine" in run("list").stdout
    shown = run("show", "mine").stdout
    assert "4096 tokens" in shown
    assert json.loads(run("show", "mine", "--json").stdout)["context_length"] == 4096
    assert run("verify").stdout == "Every file is as it was stored.\n"
    blob = max((tmp_path / "data/blobs").iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.unlink()  # it may be the checkpoint's own file by another name
    blob.write_bytes(content)
    assert run("verify", code=1).stdout == "mine: model.safetensors is damaged\n"
    assert "MB are free again" in run("rm", "mine").stdout
    assert json.loads(run("list", "--json").stdout) == []
    assert "has no model 'mine'" in run("rm", "mine", code=3).stderr
    assert "no complete model directory" in run("import", tmp_path, code=1).stderr


def test_the_settings(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """Config tells which file counts, what is in force and what is wrong, with its line; keys are not shown."""
    assert run("config", "path").stdout.strip() == str(tmp_path / "config/lib-mlx/lib-mlx.toml")
    run("config", "edit", EDITOR="true", VISUAL="")
    assert (tmp_path / "config/lib-mlx/lib-mlx.toml").is_file()
    (tmp_path / "lib-mlx.toml").write_text('[server]\nport = 5\napi_key = "secret"\n')
    shown = run("config", "show").stdout
    assert "port = 5" in shown
    assert "secret" not in shown
    assert run("config", "check").stdout == "lib-mlx.toml is right.\n"
    (tmp_path / "lib-mlx.toml").write_text("[server]\nprot = 5\n")
    wrong = run("config", "check", code=1).stderr
    assert "lib-mlx.toml, line 2: unknown key 'server.prot'" in wrong
    assert "Did you mean 'port'?" in wrong
    assert "--cflags" in run("config", code=2).stdout


def test_the_doctor(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """It tells what was found; what is wrong makes its status 1, and has a fix."""
    found = {one["what"]: one for one in json.loads(run("doctor", "--json").stdout)}
    assert {"python", "library", "mlx", "memory", "store", "settings"} <= set(found)
    assert {one["state"] for one in found.values()} <= {"ok", "warning"}
    (tmp_path / "lib-mlx.toml").write_text("[server]\nprot = 5\n")
    told = run("doctor", code=1).stdout
    assert "wrong    settings  lib-mlx.toml, line 2" in told
    assert "fix: Did you mean 'port'?" in told


def test_the_api(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Openapi prints what a server serves."""
    assert json.loads(run("openapi").stdout) == json.loads((ROOT / "docs/schemas/http/openapi.json").read_text())


@pytest.mark.parametrize("command", [["--help"], ["status"], ["list"]])
def test_it_is_quick(run: Callable[..., subprocess.CompletedProcess[str]], command: list[str]) -> None:
    """What only looks imports nothing heavy, which is what takes time."""
    done = run(*command, code=1 if command == ["status"] else 0, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in imported
    heavy = {"mlx", "numpy", "transformers", "tokenizers", "starlette", "uvicorn", "huggingface_hub", "jinja2", "PIL"}
    assert imported & heavy == set()


@pytest.mark.parametrize(
    ("line", "expected"),
    [("lib-mlx sho", ["show"]), ("lib-mlx pull sm", ["smollm2"]), ("lib-mlx run cra", ["crafted"])],
)
def test_completion(
    run: Callable[..., subprocess.CompletedProcess[str]], crafted: Path, line: str, expected: list[str]
) -> None:
    """A shell is told commands, what can be pulled, and the models there are."""
    run("import", crafted, "--name", "crafted")
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    assert run(_LIB_MLX_COMPLETE="complete_bash", **words).stdout.split() == expected
