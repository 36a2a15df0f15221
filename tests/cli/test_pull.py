from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lib_mlx.cli import main
from lib_mlx.cli.errors import EXIT_CODES, exit_code
from lib_mlx.errors import CorruptModel, DownloadFailed, Internal, LibMlxError, ModelNotFound, UnsupportedModel
from lib_mlx.models import content, download

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = Path(sys.executable).with_name("lib-mlx")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["lib-mlx", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0)

    return call


def pretend(monkeypatch: pytest.MonkeyPatch, outcome: Path | BaseException) -> list[tuple[str, str | None]]:
    """Replace the download by `outcome`; return what it is asked for."""
    asked: list[tuple[str, str | None]] = []

    def pull(name: str, progress: Callable[[str, int, int], None] | None = None, revision: str | None = None) -> Path:
        asked.append((name, revision))
        for stage in ("download", "convert"):
            for done in range(0, 101, 5):
                if progress:
                    progress(stage, done * 1_000_000, 100_000_000)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(download, "pull", pull)
    return asked


def test_the_path_is_the_last_line_of_stdout(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stdout holds the path alone, stderr a line for each tenth of each stage."""
    asked = pretend(monkeypatch, Path("/models/m"))
    assert run("pull", "org/name", "--revision", "v1") == 0
    out, err = capsys.readouterr()
    assert out == "/models/m\n"
    lines = err.splitlines()
    assert len(lines) == 22
    assert lines[0] == "download   0 % of 100.0 MB"
    assert lines[-1] == "convert 100 % of 100.0 MB"
    assert asked == [("org/name", "v1")]


def test_quiet_prints_the_path_alone(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --quiet nothing goes to stderr."""
    pretend(monkeypatch, Path("/models/m"))
    assert run("pull", "smollm2", "--quiet") == 0
    assert capsys.readouterr() == ("/models/m\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [(ModelNotFound, 3), (DownloadFailed, 4), (UnsupportedModel, 5), (CorruptModel, 5), (Internal, 1)],
)
def test_an_error_says_what_and_how(
    error: type[LibMlxError],
    code: int,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An error is two lines on stderr and a documented exit code; stdout stays empty."""
    pretend(monkeypatch, error("It broke because of that.", hint="Do this."))
    assert run("pull", "x", "-q") == code == exit_code(error("x"))
    assert capsys.readouterr() == ("", "error: It broke because of that.\n  fix: Do this.\n")
    assert code in EXIT_CODES


def test_other_ends_have_codes_too(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is 130, a full disk 1, wrong usage 2; none shows a traceback."""
    pretend(monkeypatch, KeyboardInterrupt())
    assert run("pull", "x", "-q") == 130
    pretend(monkeypatch, OSError(28, "No space left on device"))
    assert run("pull", "x", "-q") == 1
    assert run("pull") == 2
    assert run("nonsense") == 2
    assert run("pull", "x", "--nonsense") == 2
    assert run("--help") == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "No space left" in err
    assert "3 no such model" in " ".join(out.split())


def test_a_terminal_gets_a_progress_bar(tmp_path: Path) -> None:
    """Where stderr is a terminal a bar is drawn there, and stdout still holds the path alone."""
    script = (
        "from lib_mlx import cli\nfrom lib_mlx.models import download\n"
        "def pull(name, progress, revision):\n"
        "    progress('waiting', 0, 0)\n"
        "    progress('download', 50, 100)\n"
        "    progress('download', 100, 100)\n"
        "    return '/models/m'\n"
        "download.pull = pull\ncli.app(['pull', 'x'], standalone_mode=False)\n"
    )
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    result = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=theirs, env=env, check=True)
    os.close(theirs)
    drawn = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert result.stdout == b"/models/m\n"
    assert "download" in drawn
    assert "100/100 bytes" in drawn


def test_the_command_is_installed() -> None:
    """The console script runs and knows its version."""
    result = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("lib-mlx ")


def test_list_shows_what_is_there(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`list` prints name, size, source and directory, or how to get a first model."""
    monkeypatch.setenv("LIB_MLX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run("list") == 0
    assert "lib-mlx pull smollm2" in capsys.readouterr().err
    model = tmp_path / "mine"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_bytes(b"x" * 500_000)
    path = content.import_model(model, "mine")
    assert run("list") == 0
    assert capsys.readouterr().out.split() == ["mine", "1.5", "MB", "store", str(path)]
