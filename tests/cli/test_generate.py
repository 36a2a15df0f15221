"""`lib-mlx run` and `chat`, as processes: with pipes, and at a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lib_mlx.cli.generate import Printer
from lib_mlx.generation import TextDelta
from tests.checkpoints import SCRIPTS
from tests.fixtures import GUI
from tests.models.hearing import build, tone, written
from tests.models.vision import PLAIN, plain_case

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
FIGURES = re.compile(r"\d+ tokens, [\d.]+ tokens/s, first after \d+\.\d\d s")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Folders of the test's own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "LIB_MLX_STATE_DIR": str(tmp_path / "state"), "TERM": "xterm"}


def command(*arguments: object) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "lib_mlx", *map(str, arguments)]


def run(environment: dict[str, str], *arguments: object, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without a terminal."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment, input=text, timeout=60, check=False
    )


def test_one_answer(environment: dict[str, str], crafted: Path) -> None:
    """The text alone on stdout, tokens and speed on stderr; the prompt from the arguments or from stdin."""
    done = run(environment, "run", crafted, "hello", "there")
    assert (done.returncode, done.stdout) == (0, SCRIPTS["hello"].text() + "\n")
    assert FIGURES.fullmatch(done.stderr.strip())
    assert run(environment, "run", crafted, text="hello\n").stdout == done.stdout
    cut = run(environment, "run", crafted, "hello", "-n", 3)
    assert SCRIPTS["hello"].text().startswith(cut.stdout.strip())
    assert "(cut at the limit)" in cut.stderr


def test_the_settings_count(environment: dict[str, str], crafted: Path, tmp_path: Path) -> None:
    """A model of the settings is known by its name there, and loaded as they say; so is any other."""
    file = tmp_path / "lib-mlx.toml"
    file.write_text(f"[engine.generation]\nmax_tokens = 3\n[models.mine]\npath = {str(crafted)!r}\npinned = true\n")
    own = {**environment, "LIB_MLX_CONFIG": str(file)}
    for name in ("mine", crafted):
        assert run(own, "run", name, "hello").stderr.startswith("3 tokens")


def test_pictures(environment: dict[str, str]) -> None:
    """`run` and `chat` show them to a model that sees; a file that is not there is told."""
    shot, other = (GUI / f"screenshots/{name}.png" for name in ("dialog", "icon"))
    given = ["-s", "You are a helpful assistant.", "-t", 0, "-n", 10]
    done = run(environment, "run", PLAIN, "Describe the image.", "--image", shot, *given)
    answer = plain_case("one").facts["text"] + "\n"
    assert (done.returncode, done.stdout) == (0, answer)
    lines = f"/image nowhere.png\n/image {other}\n/image\n/image {shot}\nDescribe the image.\n"
    talk = run(environment, "chat", PLAIN, *given, text=lines).stdout
    assert "There is no file nowhere.png." in talk
    assert "The next message has 1 picture." in talk
    assert answer in talk
    gone = run(environment, "run", PLAIN, "a", "--image", "nowhere.png")
    assert "nowhere.png cannot be read" in gone.stderr


def test_sounds(environment: dict[str, str], tmp_path: Path) -> None:
    """`run` has a model that hears listen to them; one that does not says what it takes."""
    model, sound = build(tmp_path / "hearing"), tmp_path / "a.wav"
    sound.write_bytes(written(tone(0.5)))
    done = run(environment, "run", model, "What?", "--audio", sound, "-t", 0, "-n", 4)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("4 tokens")
    assert "reads text, images and videos, not sounds" in run(environment, "run", PLAIN, "a", "--audio", sound).stderr
    assert "nowhere.wav cannot be read" in run(environment, "run", PLAIN, "a", "--audio", "nowhere.wav").stderr


def test_reasoning_is_not_in_the_output(environment: dict[str, str], crafted: Path) -> None:
    """Without a terminal reasoning goes to stderr: stdout has the answer."""
    done = run(environment, "run", crafted, "think")
    assert done.stdout.strip() == "The answer is 42"
    assert done.stderr.startswith("Let me think.")


def test_what_is_wrong(environment: dict[str, str], tmp_path: Path) -> None:
    """A model that is not there is status 3 with what and how; nothing to ask is wrong usage."""
    done = run(environment, "run", tmp_path / "nowhere", "hello")
    assert (done.returncode, done.stdout) == (3, "")
    assert re.match(r"error: There is no model .*\n  fix: ", done.stderr)
    assert run(environment, "run", tmp_path, text="").returncode == 2


def test_ctrl_c_ends_an_answer(environment: dict[str, str], crafted: Path) -> None:
    """Status 130, what has come so far, and no traceback."""
    with subprocess.Popen(
        command("run", crafted, "loop"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert "Traceback" not in process.stderr.read()


class Terminal:
    """A program at a terminal of ours."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def send(self, text: str) -> None:
        """Type."""
        os.write(self._ours, text.encode())

    def expect(self, pattern: str, limit_s: float = 20.0) -> str:
        """Wait until what is shown behind the last match has `pattern`; return it up to there."""
        until = time.monotonic() + limit_s
        while not (found := re.search(pattern, self.seen, re.DOTALL)):
            assert time.monotonic() < until, f"no {pattern!r} in {self.seen!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._ours, 65536).decode(errors="replace")
                except OSError:  # it has ended
                    assert re.search(pattern, self.seen, re.DOTALL), f"no {pattern!r} in {self.seen!r}"
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def chat(environment: dict[str, str], crafted: Path) -> Iterator[Terminal]:
    """A conversation at its prompt."""
    terminal = Terminal(command("chat", crafted), environment)
    terminal.expect(">>> ")
    yield terminal
    terminal.close()


def test_a_conversation(chat: Terminal, tmp_path: Path) -> None:
    """Answers are streamed, commands carried out, reasoning is dim; Ctrl-D ends with status 0."""
    chat.send("hello\n")
    assert SCRIPTS["hello"].text() in chat.expect(">>> ")
    chat.send("/show\n")
    assert "2 messages" in chat.expect(">>> ")
    chat.send("/set temperature warm\n")
    assert "is no number" in chat.expect(">>> ")
    chat.send("/set temperature 0\n")
    assert "temperature is 0.0." in chat.expect(">>> ")
    chat.send("/nonsense\n")
    assert "There is no command /nonsense" in chat.expect(">>> ")
    chat.send("think\n")
    shown = chat.expect(">>> ")
    assert "\x1b[2mLet me think.\x1b[0m\r\nThe answer is 42" in shown
    chat.send("/clear\n")
    chat.expect(">>> ")
    chat.send("/show\n")
    assert "0 messages" in chat.expect(">>> ")
    chat.send("\x04")
    assert chat.process.wait(20) == 0
    history = tmp_path / "state" / "chat_history"
    assert "hello" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Terminal) -> None:
    """The conversation goes on behind it; at the prompt Ctrl-C drops the line."""
    chat.send("loop\n")
    chat.expect("loop\r\n.{20}")
    os.killpg(chat.process.pid, signal.SIGINT)
    assert "stopped" in chat.expect(">>> ")
    chat.send("half a li")
    chat.expect("half a li")
    time.sleep(0.2)  # a signal between the echo and the wait for the next key would wait with it
    os.killpg(chat.process.pid, signal.SIGINT)
    chat.expect(">>> ")
    chat.send("hello\n")
    assert SCRIPTS["hello"].text() in chat.expect(">>> ")
    assert chat.process.poll() is None


def test_a_terminal_is_not_the_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What would move the cursor or change the title does not reach a terminal; elsewhere the text is as it is."""
    said = "a\x1b]0;title\x07b\x9b2Jc\td\n"
    for terminal, expected in ((True, "a]0;titleb2Jc\td\n"), (False, said)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        printer = Printer()
        printer.show([TextDelta(said)])
        assert capsys.readouterr().out == expected
        assert printer.text == said
