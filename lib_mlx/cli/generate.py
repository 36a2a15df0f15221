"""What `run` and `chat` share: a model that is loaded here, and its answers as they come."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from lib_mlx.generation import Finished, Message, ReasoningDelta, TextDelta, ToolCallDelta

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lib_mlx.api import Model
    from lib_mlx.generation import Attachment, GenerationEvent, SamplingParams

# What a terminal obeys: of a model's text, lines and tabs alone are followed.
_CONTROLS = str.maketrans(dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)]))
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_POLL_S = 0.05


def load(name: str, adapter: Path | None = None, **options: Any) -> Model:
    """Load a model as the settings say; on a terminal its progress is shown on stderr. Ctrl-C cancels the load."""
    import lib_mlx
    from lib_mlx.cli.progress import loading_bar
    from lib_mlx.settings import load_settings

    configured = load_settings().load_config(name).model_dump(exclude_unset=True)
    if adapter is not None:
        options["adapter_path"] = str(adapter)
    model = lib_mlx.load_model(**{**configured, **options, "wait": False})
    try:
        with loading_bar() as show:
            while (status := model.status().model).status == "loading":
                show(status.stage, status.progress)
                time.sleep(_POLL_S)
    except BaseException:
        model.unload()
        raise
    if status.error is not None:
        from lib_mlx.errors import error_from_json

        model.unload()
        raise error_from_json(status.error)
    return model


def question(text: str, images: Iterable[Path], audio: Iterable[Path] = ()) -> Message:
    """Return a user's message: images, sounds, then the text; raises InvalidArgument if there is no such file."""
    from lib_mlx.api import image_of, sound_of

    parts: tuple[str | Attachment, ...] = (*map(image_of, images), *map(sound_of, audio), text)
    return Message("user", text, parts=parts if len(parts) > 1 else ())


class Printer:
    """Writes an answer to stdout as it comes, reasoning dimmed where that is a terminal and on stderr where not."""

    def __init__(self) -> None:
        self.text = ""
        self._terminal = sys.stdout.isatty()
        self._reasoning = False

    def show(self, events: Iterable[GenerationEvent]) -> Finished | None:
        """Write `events`; returns the last one. KeyboardInterrupt passes through, with the terminal left plain."""
        try:
            for event in events:
                match event:
                    case TextDelta(piece):
                        self._end_reasoning()
                        self.text += piece
                        self._write(self._plain(piece))
                    case ReasoningDelta(piece):
                        self._reason(piece)
                    case ToolCallDelta():
                        self._end_reasoning()
                        self._write(self._plain(f"{event.name}({event.arguments})\n"))
                    case Finished():
                        return event
        finally:
            self._end_reasoning()
        return None

    def _plain(self, text: str) -> str:
        return text.translate(_CONTROLS) if self._terminal else text

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _reason(self, piece: str) -> None:
        if not self._terminal:
            sys.stderr.write(piece)
            self._reasoning = True
            return
        if not self._reasoning:
            self._write(_DIM)
            self._reasoning = True
        self._write(self._plain(piece))

    def _end_reasoning(self) -> None:
        if self._reasoning:
            self._reasoning = False
            if self._terminal:
                self._write(f"{_PLAIN}\n")
            else:
                sys.stderr.write("\n")


def figures(finished: Finished) -> str:
    """Say how many tokens an answer has and how fast they came."""
    usage, timings = finished.usage, finished.timings
    seconds = max(timings.decode, 1e-9)
    rate = f", {(usage.completion - 1) / seconds:.1f} tokens/s" if usage.completion > 1 else ""
    cut = " (cut at the limit)" if finished.reason == "length" else ""
    return f"{usage.completion} tokens{rate}, first after {timings.ttft:.2f} s{cut}"


def answer(
    model: Model, messages: list[Message], sampling: SamplingParams, max_tokens: int | None
) -> tuple[str, Finished | None]:
    """Generate and print an answer; returns its text and how it ended, None if Ctrl-C ended it."""
    printer = Printer()
    stream = model.stream(messages, sampling=sampling, max_tokens=max_tokens)
    try:
        finished = printer.show(stream)
    except KeyboardInterrupt:
        finished = None
    finally:
        stream.close()  # type: ignore[attr-defined]  # it is a generator
    typer.echo()
    return printer.text, finished
