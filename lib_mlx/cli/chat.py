"""`lib-mlx chat`: a conversation at the terminal."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lib_mlx.cli.run import Adapter, MaxTokens, ModelName, Seed, System, Temperature  # noqa: TC001 - typer reads them
from lib_mlx.generation import Message, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.api import Model

_HELP = """\
/clear             forget the conversation
/image PATH        show a picture with the next message; without PATH none
/system TEXT       begin with this system message; without TEXT with none
/set KEY VALUE     temperature, top_p, top_k, min_p, seed or max_tokens; VALUE "default" undoes it
/show              tell the settings and the length of the conversation
/help              this
/exit, Ctrl-D      leave
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one."""
_NUMBERS = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "seed": int, "max_tokens": int}
_HISTORY_LINES = 1000


class Conversation:
    """What was said, and how answers are made."""

    def __init__(self, system: str | None, sampling: SamplingParams, max_tokens: int | None) -> None:
        self.system = system
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.messages: list[Message] = []
        self.images: list[Path] = []
        """For the next message."""

    def command(self, line: str) -> str | None:
        """Carry out a command; returns what to tell, or None to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in {"/exit", "/quit", "/bye"}:
            return None
        commands = {
            "/help": lambda: _HELP,
            "/?": lambda: _HELP,
            "/clear": self._clear,
            "/image": lambda: self._show_image(rest),
            "/system": lambda: self._set_system(rest),
            "/set": lambda: self._set(*rest.partition(" ")[::2]),
            "/show": self._show,
        }
        return commands[name]() if name in commands else f"There is no command {name}. /help lists them."

    def _show_image(self, name: str) -> str:
        if not name:
            self.images.clear()
            return "The next message has no pictures."
        path = Path(name).expanduser()
        if not path.is_file():
            return f"There is no file {name}."
        self.images.append(path)
        return f"The next message has {len(self.images)} picture{'s' if len(self.images) > 1 else ''}."

    def _clear(self) -> str:
        self.messages.clear()
        return "The conversation is forgotten."

    def _set_system(self, text: str) -> str:
        self.system = text or None
        return "The system message is set." if text else "There is no system message."

    def _set(self, key: str, value: str) -> str:
        if key not in _NUMBERS:
            return f"There is no setting {key!r}: {', '.join(_NUMBERS)}."
        try:
            number = None if value.strip() == "default" else _NUMBERS[key](value)
        except ValueError:
            return f"{value!r} is no number."
        if key == "max_tokens":
            self.max_tokens = None if number is None else int(number)
        else:
            changed: dict[str, Any] = {key: number}
            self.sampling = replace(self.sampling, **changed)
        return f"{key} is {'the default' if number is None else number}."

    def _show(self) -> str:
        values = {key: getattr(self.sampling, key) for key in _NUMBERS if key != "max_tokens"}
        values["max_tokens"] = self.max_tokens
        told = ", ".join(f"{key} {value}" for key, value in values.items() if value is not None) or "all defaults"
        return f"{told}; {len(self.messages)} messages; system message: {self.system or 'none'}"

    def ask(self, model: Model, text: str) -> str:
        """Print the answer to `text` and keep both; returns the figures, or why there is none."""
        from lib_mlx.cli.generate import answer, figures, question
        from lib_mlx.errors import LibMlxError

        system = [Message("system", self.system)] if self.system else []
        images, self.images = self.images, []
        try:
            asked = [*self.messages, question(text, images)]
            said, finished = answer(model, [*system, *asked], self.sampling, self.max_tokens)
        except LibMlxError as error:
            return f"error: {error.message}" + (f"\n  fix: {error.hint}" if error.hint else "")
        self.messages = [*asked, Message("assistant", said)]
        return figures(finished) if finished else "stopped"


def chat(
    model: ModelName,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    adapter: Adapter = None,
) -> None:
    """Talk with a model. /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends."""
    from lib_mlx.cli.generate import load

    conversation = Conversation(system, SamplingParams(temperature=temperature, seed=seed), max_tokens)
    with load(model, adapter) as loaded:
        for line in _lines():
            if line.startswith("/"):
                told = conversation.command(line)
                if told is None:
                    return
                typer.echo(told)
            else:
                typer.secho(conversation.ask(loaded, line), dim=True, err=True)


def _lines() -> Iterator[str]:
    """Yield what is typed, until the end of input. Ctrl-C at the prompt drops the line."""
    with _history():
        while True:
            try:
                line = input(">>> ")
                while line.endswith("\\"):
                    line = line[:-1] + "\n" + input("... ")
            except KeyboardInterrupt:
                typer.echo()
                continue
            except EOFError:
                typer.echo()
                return
            if line.strip():
                yield line.strip()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Have `input` remember lines, also of earlier conversations, where there is a readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    from lib_mlx.service.state import state_dir

    file = state_dir() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(file)
            file.chmod(0o600)
