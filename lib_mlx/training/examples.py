"""Examples from JSONL: texts, prompts with completions, and conversations with tools or images, as tokens.

One object a line: `{"text"}`; `{"prompt", "completion"}`; `{"messages", "tools"}` as Chat Completions has them
(https://platform.openai.com/docs/guides/supervised-fine-tuning); or mlx-vlm's `{"images", "messages"}` and
`{"image", "question", "answer"}` (see `image_rows`).
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from codecs import BOM_UTF8
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from lib_mlx.errors import CorruptModel, InvalidArgument, LibMlxError
from lib_mlx.generation import GenerationRequest, Message
from lib_mlx.models.chat_template import render_turns
from lib_mlx.server.http import validate
from lib_mlx.server.openai.chat_request import ChatRequest, to_generation
from lib_mlx.training.image_rows import as_conversation, read_images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.models.loader import LoadedTokenizer
    from lib_mlx.models.media_prompt import Medium, PromptMedia
    from lib_mlx.models.media_reader import MediaReader
    from lib_mlx.training.config import TrainConfig

_SHAPES = ({"text"}, {"prompt", "completion"}, {"messages"}, {"question", "answer"})
_Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Line:
    """Where an example stands."""

    path: Path
    number: int
    offset: int
    """In bytes."""

    def __str__(self) -> str:
        return f"{self.path}:{self.number}"


@dataclass(frozen=True)
class Example:
    """A text in tokens, and which of them are learnt."""

    tokens: tuple[int, ...]
    """-1 where images are."""
    spans: _Spans
    """Beginnings and ends; the first token of a text and those of images are never learnt."""
    media: PromptMedia | None = None
    """Its images, but for their pixels, which are read again when they are needed."""
    line: Line | None = None


@dataclass(frozen=True)
class Examples:
    """What there is to learn from."""

    train: list[Example]
    valid: list[Example]
    cut: list[str]
    """Where an example was too long."""

    def digest(self) -> str:
        """Return what changes with them: which there are, their images, and what of them is learnt."""
        found = hashlib.sha256()
        for example in [*self.train, None, *self.valid]:
            images = [span.medium for span in example.media.spans] if example and example.media else ()
            found.update(repr(example and (example.tokens, example.spans, images)).encode())
        return found.hexdigest()


def read_examples(
    config: TrainConfig, tokenizer: LoadedTokenizer, eos: int, images: MediaReader | None = None
) -> Examples:
    """Return the examples that `config` names.

    Args:
        config: names a file or a folder.
        tokenizer: the model's.
        eos: ends a text.
        images: reads images, if the model does.

    Raises:
        InvalidArgument: a file is missing, or a line is wrong, or an image of it; the message names it.
    """
    path = Path(config.data_path).expanduser()
    reader = _Reader(config, tokenizer, eos, images)
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
    def __init__(self, config: TrainConfig, tokenizer: LoadedTokenizer, eos: int, images: MediaReader | None) -> None:
        self._images = images
        self._config = config
        self._tokenizer = tokenizer
        self._eos = eos
        self.cut: list[str] = []

    def read(self, path: Path) -> list[Example]:
        """Return the examples of a file."""
        found = []
        for line, content in _lines(path):
            with _named(line):
                found.append(self._example(content, line))
        if not found:
            raise InvalidArgument(f"{path} has no example.", hint="Write one JSON object a line.", param="data_path")
        return found

    def _example(self, content: bytes, line: Line) -> Example:
        value = _row(content, line.path.parent)
        media = None
        if "text" in value:
            tokens, spans = self._text(value)
        else:
            request, pictures = read_images(_request(value), self._images)
            tokens, spans = self._conversation(request)
            if pictures and self._images is not None:
                tokens, spans, media = _placed(self._images, tokens, spans, pictures)
        limit = self._config.max_tokens
        if len(tokens) > limit:
            self.cut.append(f"{line}: {len(tokens)} tokens, cut to {limit}")
        spans = tuple((begin, min(end, limit)) for begin, end in spans if begin < min(end, limit))
        if not any(end > max(begin, 1) for begin, end in spans):
            raise InvalidArgument(
                f"nothing is left to learn of its {len(tokens)} tokens.",
                hint="Give it an answer; raise max_tokens, or lower max_pixels.",
            )
        return Example(tokens[:limit], spans, media, line if media else None)

    def _text(self, value: dict[str, Any]) -> tuple[tuple[int, ...], _Spans]:
        if unknown := set(value) - {"text"}:
            raise InvalidArgument(f"unknown key {min(unknown)!r}.", hint="Leave it out.")
        if not isinstance(value["text"], str):
            raise InvalidArgument("'text' is no text.")
        with self._tokenizer.lock:
            tokens = tuple(self._tokenizer.wrapper.backend_tokenizer.encode(value["text"]).ids)
        tokens = tokens if tokens[-1:] == (self._eos,) else (*tokens, self._eos)
        return tokens, ((0, len(tokens)),)

    def _conversation(self, request: GenerationRequest) -> tuple[tuple[int, ...], _Spans]:
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


def read_again(line: Line, images: MediaReader) -> list[Medium]:
    """Return the images of an example, with their pixels; raises InvalidArgument if they are not there any more."""
    with _named(line), line.path.open("rb") as file:
        file.seek(line.offset)
        return read_images(_request(_row(file.readline(), line.path.parent)), images)[1]


@contextlib.contextmanager
def _named(line: Line) -> Iterator[None]:
    """Name the line in errors."""
    try:
        yield
    except CorruptModel:  # not the line's fault
        raise
    except LibMlxError as error:
        raise InvalidArgument(f"{line}: {error.message}", hint=error.hint, param="data_path") from None
    except OSError as error:
        raise InvalidArgument(f"{line} cannot be read any more: {error.strerror}.", param="data_path") from None


def _row(content: bytes, folder: Path) -> dict[str, Any]:
    """Return the object of a line, a conversation with images in Chat Completions' words."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        if not _is_utf8(content):
            raise InvalidArgument("not UTF-8.", hint="Save the file as UTF-8.") from None
        raise InvalidArgument(
            f"not JSON: {error.msg}, at character {error.pos + 1}.", hint="Write one JSON object a line."
        ) from None
    if not isinstance(value, dict):
        raise InvalidArgument("no JSON object.", hint="Write one JSON object a line.")
    if not any(shape <= set(value) for shape in _SHAPES):
        found = ", ".join(map(repr, value)) or "nothing"
        raise InvalidArgument(
            f"neither text, nor prompt and completion, nor messages, nor question and answer, but {found}.",
            hint='Name the columns so, for example {"prompt": "…", "completion": "…"}.',
        )
    return as_conversation(value, folder)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _placed(
    images: MediaReader, tokens: tuple[int, ...], spans: _Spans, pictures: list[Medium]
) -> tuple[tuple[int, ...], _Spans, PromptMedia]:
    """Return tokens and spans with images in their places, and these without their pixels."""
    ends = [place for span in spans for place in span]
    numbers, media, moved = images.place(tokens, pictures, ends)
    spans = tuple(zip(moved[::2], moved[1::2], strict=True))
    return tuple(max(number, -1) for number in numbers), spans, replace(media, media={})


def _agreement(tokens: tuple[int, ...], beginning: list[int]) -> int:
    """Return how many tokens at the beginning are the same: templates may write an earlier turn otherwise."""
    return next(
        (at for at, (one, other) in enumerate(zip(tokens, beginning, strict=False)) if one != other),
        min(len(tokens), len(beginning)),
    )


def _request(value: dict[str, Any]) -> GenerationRequest:
    if "messages" in value:
        if unknown := set(value) - {"messages", "tools", "parallel_tool_calls"}:
            raise InvalidArgument(f"unknown key {min(unknown)!r}.", hint="Leave it out.")
        return to_generation(validate(ChatRequest, value))
    if unknown := set(value) - {"prompt", "completion"}:
        raise InvalidArgument(f"unknown key {min(unknown)!r}.", hint="Leave it out.")
    for key in ("prompt", "completion"):
        if not isinstance(value[key], str):
            raise InvalidArgument(f"{key!r} is no text.")
    return GenerationRequest(messages=(Message("user", value["prompt"]), Message("assistant", value["completion"])))


def _lines(path: Path) -> Iterator[tuple[Line, bytes]]:
    """Yield the lines of a file that are not empty."""
    offset = 0
    try:
        with path.open("rb") as file:
            if file.read(len(BOM_UTF8)) == BOM_UTF8:  # Windows' editors write it
                offset = len(BOM_UTF8)
            file.seek(offset)
            for number, content in enumerate(file, 1):
                if content.strip():
                    yield Line(path, number, offset), content
                offset += len(content)
    except OSError as error:
        raise InvalidArgument(
            f"{path} cannot be read: {error.strerror}.", hint="Name a .jsonl file or a folder.", param="data_path"
        ) from None
