"""Examples from JSONL: texts, prompts with completions, and conversations with tools, as tokens.

One object a line: `{"text"}`; `{"prompt", "completion"}`; or `{"messages", "tools"}` as Chat Completions has them
(https://platform.openai.com/docs/guides/supervised-fine-tuning).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from lib_mlx.errors import InvalidArgument, LibMlxError
from lib_mlx.generation import GenerationRequest, Message
from lib_mlx.models.chat_template import render_turns
from lib_mlx.server.http import validate
from lib_mlx.server.openai.chat_request import ChatRequest, to_generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.models.loader import LoadedTokenizer
    from lib_mlx.training.config import TrainConfig

_SHAPES = ({"text"}, {"prompt", "completion"}, {"messages"})


@dataclass(frozen=True)
class Example:
    """A text in tokens, and which of them are learnt."""

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """Beginnings and ends; the first token of a text is never learnt."""


@dataclass(frozen=True)
class Examples:
    """What there is to learn from."""

    train: list[Example]
    valid: list[Example]
    cut: list[str]
    """Where an example was too long."""


def read_examples(config: TrainConfig, tokenizer: LoadedTokenizer, eos: int) -> Examples:
    """Return the examples that `config` names.

    Raises:
        InvalidArgument: a file is missing, or a line is wrong; the message names it.
    """
    path = Path(config.data_path).expanduser()
    reader = _Reader(config, tokenizer, eos)
    if path.is_dir():
        train = reader.read(path / "train.jsonl")
        kept = path / "valid.jsonl"
        if kept.is_file():
            return Examples(train, reader.read(kept), reader.cut)
    else:
        train = reader.read(path)
    count = int(len(train) * config.validation_share)
    if count:
        random.Random(config.seed).shuffle(train)  # noqa: S311 - not a secret
    return Examples(train[count:], train[:count], reader.cut)


class _Reader:
    def __init__(self, config: TrainConfig, tokenizer: LoadedTokenizer, eos: int) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._eos = eos
        self.cut: list[str] = []

    def read(self, path: Path) -> list[Example]:
        """Return the examples of a file."""
        found = []
        for where, line in _lines(path):
            try:
                found.append(self._example(line, where))
            except LibMlxError as error:
                raise InvalidArgument(f"{where}: {error.message}", hint=error.hint, param="data_path") from None
        if not found:
            raise InvalidArgument(f"{path} has no example.", hint="Write one JSON object a line.", param="data_path")
        return found

    def _example(self, line: bytes, where: str) -> Example:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InvalidArgument(f"not JSON: {error}.") from None
        keys = set(value) if isinstance(value, dict) else set()
        if not any(shape <= keys for shape in _SHAPES):
            raise InvalidArgument(
                "neither text, nor prompt and completion, nor messages.", hint='For example {"messages": [...]}.'
            )
        tokens, spans = self._text(value) if "text" in value else self._conversation(_request(value))
        limit = self._config.max_tokens
        if len(tokens) > limit:
            self.cut.append(f"{where}: {len(tokens)} tokens, cut to {limit}")
        spans = tuple((begin, min(end, limit)) for begin, end in spans if begin < min(end, limit))
        if not any(end > max(begin, 1) for begin, end in spans):
            raise InvalidArgument(
                f"nothing is left to learn of its {len(tokens)} tokens.", hint="Give it an answer; raise max_tokens."
            )
        return Example(tokens[:limit], spans)

    def _text(self, value: dict[str, Any]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        if unknown := set(value) - {"text"}:
            raise InvalidArgument(f"unknown key {min(unknown)!r}.")
        if not isinstance(value["text"], str):
            raise InvalidArgument("'text' is no text.")
        with self._tokenizer.lock:
            tokens = tuple(self._tokenizer.wrapper.backend_tokenizer.encode(value["text"]).ids)
        tokens = tokens if tokens[-1:] == (self._eos,) else (*tokens, self._eos)
        return tokens, ((0, len(tokens)),)

    def _conversation(self, request: GenerationRequest) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        turns, tools = request.messages, request.tools
        tokens = tuple(render_turns(self._tokenizer, turns, tools, opened=False))
        if self._config.train_on_prompts:
            return tokens, ((0, len(tokens)),)
        spans = []
        for index, turn in enumerate(turns):
            if turn.role == "assistant":
                begin = _agreement(tokens, render_turns(self._tokenizer, turns[:index], tools, opened=True))
                end = _agreement(tokens, render_turns(self._tokenizer, turns[: index + 1], tools, opened=False))
                spans.append((begin, end))
        return tokens, tuple(spans)


def _agreement(tokens: tuple[int, ...], beginning: list[int]) -> int:
    """Return how many tokens at the beginning are the same: templates may write an earlier turn otherwise."""
    return next(
        (at for at, (one, other) in enumerate(zip(tokens, beginning, strict=False)) if one != other),
        min(len(tokens), len(beginning)),
    )


def _request(value: dict[str, Any]) -> GenerationRequest:
    if "messages" in value:
        if unknown := set(value) - {"messages", "tools", "parallel_tool_calls"}:
            raise InvalidArgument(f"unknown key {min(unknown)!r}.")
        return to_generation(validate(ChatRequest, value))
    if unknown := set(value) - {"prompt", "completion"}:
        raise InvalidArgument(f"unknown key {min(unknown)!r}.")
    for key in ("prompt", "completion"):
        if not isinstance(value[key], str):
            raise InvalidArgument(f"{key!r} is no text.")
    return GenerationRequest(messages=(Message("user", value["prompt"]), Message("assistant", value["completion"])))


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of a file that are not empty, with where they are."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise InvalidArgument(
            f"{path} cannot be read: {error.strerror}.", hint="Name a .jsonl file or a folder.", param="data_path"
        ) from None
