"""The README and docs/ are true: their code runs, their tables match the code, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib_mlx.settings import load_settings
from tests.test_errors import all_errors
from tools import settings_table

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGING = "tests/abi/test_packaging.py"
WITH_PKG_CONFIG = 'cc host.c $(pkg-config --cflags --libs lib_mlx) -Wl,-rpath,"$(pkg-config --variable=libdir lib_mlx)"'
BUNDLE = "tests/bundle/test_bundle.py"
ACTOR = "tests/fixtures/gui/models/tiny-gui-actor-qwen2vl"
AGENT = 'agent "Click the blue button" "Click the red button" --url "file://$PWD/examples/agent/buttons.html"'
EXECUTED_ELSEWHERE = {
    "make demo": "test_the_demo",
    "make test": "this suite",
    ".venv/bin/lib-mlx bundle build/MyApp --model smollm2": BUNDLE,
    ".venv/bin/lib-mlx bundle build/MyApp --check": BUNDLE,
    "cc host.c $(.venv/bin/lib-mlx config --cflags --libs) -o host": PACKAGING,
    "export PKG_CONFIG_PATH=$(.venv/bin/lib-mlx config --pkgconfig)": PACKAGING,
    f"{WITH_PKG_CONFIG} -o host": PACKAGING,
    f".venv/bin/lib-mlx {AGENT} --size 420x336 -m {ACTOR} --yes --report /tmp/report.html": "tests/cli/test_ground.py",
    ".venv/bin/lib-mlx eval screenspot ScreenSpot-v2 -m GUI-Actor-3B-Qwen2.5-VL": "tests/cli/test_ground.py",
}


def blocks(language: str) -> list[tuple[Path, str]]:
    """Every code block of a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(path, block) for path in DOCS for block in pattern.findall(path.read_text())]


def shell_scripts() -> list[str]:
    """Every shell block, without what is executed elsewhere."""
    scripts = []
    for _, block in blocks("sh"):
        lines = [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]
        scripts.append("\n".join(line for line in lines if line not in EXECUTED_ELSEWHERE))
    return [script for script in scripts if script]


@pytest.mark.model
@pytest.mark.parametrize(("path", "code"), blocks("python"))
@pytest.mark.usefixtures("smollm2")
def test_python(path: Path, code: str) -> None:
    """Each Python block runs as it stands and prints something."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == ""


@pytest.mark.model
@pytest.mark.parametrize("script", shell_scripts())
@pytest.mark.usefixtures("smollm2")
def test_shell(script: str, tmp_path: Path) -> None:
    """Each block runs in the checkout, with services of its own at free ports."""
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    own = {"LIB_MLX_STATE_DIR": str(tmp_path), "LIB_MLX_SERVER__PORT": "0"}
    done = subprocess.run(
        ["sh", "-e", "-c", script], check=False, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **own}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.model
@pytest.mark.skipif(not list((ROOT / ".venv").glob(".synced-*")), reason="this checkout was not set up by make")
@pytest.mark.usefixtures("smollm2")
def test_the_demo() -> None:
    """`make demo` prints an answer of the model and its speed."""
    done = subprocess.run(
        ["make", "demo", "PROMPT=What is the capital of France?"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert re.search(r"\d+ tokens, [\d.]+ tokens/s", done.stdout + done.stderr)


def test_every_error_is_documented() -> None:
    """docs/errors.md lists each code with its status."""
    rows = set(re.findall(r"^\| `(\w+)` \| (\d+) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE))
    assert rows == {(kind.code, str(kind.http_status)) for kind in all_errors()}


def test_the_table_of_variables() -> None:
    """docs/cli.md lists every variable with its default, as `python -m tools.settings_table` writes it."""
    text = (ROOT / "docs/cli.md").read_text()
    assert settings_table.with_table(text) == text


def test_the_settings_in_the_docs(tmp_path: Path) -> None:
    """Each TOML block is right."""
    for _, block in blocks("toml"):
        file = tmp_path / "lib-mlx.toml"
        file.write_text(block)
        load_settings(file=file, environment={})


def test_links_lead_somewhere() -> None:
    """Every relative link names a file that exists."""
    for path in DOCS:
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_architecture_names_files_that_exist() -> None:
    """The table of where to find what is kept up to date."""
    text = (ROOT / "docs/architecture.md").read_text()
    folder = ROOT / "lib_mlx"
    for name in re.findall(r"`([\w/]+\.(?:py|c))`", text):
        found = (folder / name).exists() or (ROOT / name).exists() or any(folder.rglob(name))
        assert found, name
