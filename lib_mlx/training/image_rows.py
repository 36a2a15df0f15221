"""Images in rows of JSONL: where they may stand, and their files. No MLX; any thread."""

from __future__ import annotations

import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import Image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lib_mlx.generation import Attachment, GenerationRequest
    from lib_mlx.models.media_prompt import Medium
    from lib_mlx.models.media_reader import MediaReader

_COLUMNS = ("image", "images")
_SCHEMES = frozenset({"data", "file", "http", "https"})


def as_conversation(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a row of mlx-vlm's columns as a conversation in Chat Completions' words, and with absolute paths.

    Images stand in messages (`{"type": "image_url", "image_url": {"url"}}` or `{"type": "image", "image"}`), or in the
    column `image` or `images`: then each takes the place of a part `{"type": "image"}`, or if there is none, they
    stand before the first user's text. `question` and `answer` are a conversation. Other rows are returned as they are.

    Args:
        row: a line's object.
        folder: what paths are relative to.

    Raises:
        InvalidArgument: there are more images than places, or fewer; or a column is not of its kind.
    """
    row = dict(row)
    images = [image for name in _COLUMNS for image in _listed(row.pop(name, None))]
    if {"question", "answer"} <= set(row):
        turns = (("user", "question"), ("assistant", "answer"))
        row["messages"] = [{"role": role, "content": row.pop(key)} for role, key in turns]
    messages = row.get("messages")
    if not isinstance(messages, list):
        if images:
            raise InvalidArgument("images without messages, or a question and an answer.")
        return row
    left = list(images)
    if left and not any(map(_is_empty, _parts(messages))):
        messages, left = _before_first_user(messages, left), []
    row["messages"] = [_with_urls(message, left, folder) for message in messages]
    if left:
        raise InvalidArgument(f"{len(images)} images, of which {len(left)} have no place in the messages.")
    return row


def _listed(column: Any) -> list[str]:
    images = column if isinstance(column, list) else [] if column is None else [column]
    if not all(isinstance(image, str) for image in images):
        raise InvalidArgument("'image' is no path or data URL, or 'images' no list of them.")
    return images


def _parts(messages: list[Any]) -> list[dict[str, Any]]:
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    return [part for parts in contents if isinstance(parts, list) for part in parts if isinstance(part, dict)]


def _is_empty(part: dict[str, Any]) -> bool:
    return part.get("type") == "image" and "image" not in part


def _before_first_user(messages: list[Any], images: list[str]) -> list[Any]:
    at = next((at for at, turn in enumerate(messages) if isinstance(turn, dict) and turn.get("role") == "user"), None)
    if at is None:
        raise InvalidArgument("no user's message is there for the images to stand in.")
    content = messages[at].get("content")
    texts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    turn = {**messages[at], "content": [*({"type": "image", "image": image} for image in images), *texts]}
    return [*messages[:at], turn, *messages[at + 1 :]]


def _with_urls(message: Any, left: list[str], folder: Path) -> Any:
    """Return a message whose images have URLs; those that have no place of their own are taken off `left`."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_with_url(part, left, folder) for part in message["content"]]}


def _with_url(part: Any, left: list[str], folder: Path) -> Any:
    """Return a part of a message; whatever is wrong with one of type image_url is found when it is validated."""
    if not isinstance(part, dict):
        return part
    if part.get("type") == "image":
        if unknown := set(part) - {"type", "image"}:
            raise InvalidArgument(f"unknown key {min(unknown)!r} of an image.")
        if _is_empty(part) and not left:
            raise InvalidArgument("fewer images than places for them in the messages.")
        url = left.pop(0) if _is_empty(part) else part["image"]
        part = {"type": "image_url", "image_url": {"url": url}}
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str) or url.partition(":")[0].lower() in _SCHEMES:
        return part
    return {**part, "image_url": {**image, "url": str(folder.absolute() / url)}}


def read_images(request: GenerationRequest, reader: MediaReader | None) -> tuple[GenerationRequest, list[Medium]]:
    """Return a conversation with the contents of its images, and these as they enter the model.

    Raises:
        InvalidArgument: one is missing or cannot be read, or the model reads none.
    """
    for one in request.attachments:
        if not isinstance(one, Image):
            raise InvalidArgument(f"only images are learnt from, and this is a {one.kind}.")
        if reader is None or "image" not in reader.kinds:
            raise InvalidArgument("this model reads no images.", hint="Train a vision model.")
    if reader is None or not request.attachments:
        return request, []
    messages = [
        replace(message, parts=tuple(_with_content(part) for part in message.parts)) for message in request.messages
    ]
    request = replace(request, messages=tuple(messages))
    try:
        return request, reader.read(request)
    except InvalidArgument as error:
        raise InvalidArgument(f"{error.param}: {error.message}", hint=error.hint) from None


def _with_content(part: str | Attachment) -> str | Attachment:
    if not isinstance(part, Image) or isinstance(part.source, bytes):
        return part
    url = urllib.parse.urlsplit(part.source)
    if url.scheme not in {"", "file"} or url.netloc not in {"", "localhost"}:
        raise InvalidArgument(f"{part.source} is not fetched.", hint="Fetch the image first, and name its file.")
    path = Path(urllib.parse.unquote(url.path) if url.scheme else part.source)
    try:
        return replace(part, source=path.read_bytes(), param=str(path))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidArgument(f"{path} cannot be read: {why}.", hint="Check the image's path.") from None
