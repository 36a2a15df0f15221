"""From Anthropic's messages to ours: turns joined, tool results matched with their calls."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import Message, ToolCall
from lib_mlx.server.anthropic.blocks import (
    ImageBlock,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from lib_mlx.server.anthropic.common import hidden_reasoning
from lib_mlx.server.fields import refuse, refuse_unless
from lib_mlx.server.media import image_at, image_in, message_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn

    from lib_mlx.generation import Image
    from lib_mlx.server.anthropic.blocks import Block, InputMessage, TextOrOther

Placed = tuple[str, "Block"]
"""A block and where it stands in the body."""


def read_conversation(messages: Sequence[InputMessage]) -> tuple[list[Message], str]:
    """Return the conversation, and the text that the answer begins with if the last turn is the assistant's.

    Raises:
        InvalidArgument: calls and results do not match, or a block stands where it may not.
        UnsupportedFeature: a block is of a kind that cannot be read.
    """
    turns = [
        (role, list(itertools.chain.from_iterable(_placed(at, message) for at, message in group)))
        for role, group in itertools.groupby(enumerate(messages), lambda item: item[1].role)
    ]
    prefill = _read_prefill(turns.pop()[1]) if turns and turns[-1][0] == "assistant" else ""
    read: list[Message] = []
    known: set[str] = set()
    calls: dict[str, str] = {}
    for role, blocks in turns:
        if role == "assistant":
            message = _read_answer(blocks, known)
            calls = {call.id: call.name for call in message.tool_calls}
            read.append(message)
            continue
        read += _read_input(role, blocks, calls)
        if calls:
            raise InvalidArgument(
                f"The calls {sorted(calls)} have no result.",
                hint="Send a tool_result block for each in the next message.",
                param="messages",
            )
    return read, prefill


def system_text(system: str | Sequence[TextOrOther] | None) -> str:
    """Return the instructions given apart from the messages."""
    if system is None or isinstance(system, str):
        return system or ""
    return "\n".join(_text_of(block, f"system.{at}") for at, block in enumerate(system))


def _placed(at: int, message: InputMessage) -> Iterator[Placed]:
    where = f"messages.{at}.content"
    if isinstance(message.content, str):
        yield where, TextBlock(type="text", text=message.content)
        return
    if not message.content and message.role != "assistant":
        raise InvalidArgument("The message has no content.", param=where)
    yield from ((f"{where}.{number}", block) for number, block in enumerate(message.content))


def _read_answer(blocks: Sequence[Placed], known: set[str]) -> Message:
    """Return an assistant's turn; `known` are the ids of the calls so far."""
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    for where, block in blocks:
        match block:
            case ThinkingBlock():
                reasoning.append(_reasoning_of(block, where))
            case RedactedThinkingBlock():
                pass
            case ToolUseBlock():
                if block.id in known:
                    raise InvalidArgument(f"The id {block.id!r} is used twice.", param=f"{where}.id")
                known.add(block.id)
                calls.append(_call(block, where))
            case ToolResultBlock():
                _misplaced(block, where, "user")
            case _:
                texts.append(_text_of(block, where))
    # The blocks are pieces of one text, as the model wrote it.
    return Message("assistant", "".join(texts), reasoning="".join(reasoning), tool_calls=tuple(calls))


def _read_prefill(blocks: Sequence[Placed]) -> str:
    """Return the text of an assistant's turn that is to go on."""
    texts: list[str] = []
    for where, block in blocks:
        match block:
            case ThinkingBlock() | RedactedThinkingBlock():
                refuse(where, "an answer that has begun cannot be preceded by reasoning", "End with a user's message.")
            case ToolUseBlock():
                raise InvalidArgument(
                    f"The call {block.id!r} has no result.", hint="Send a tool_result block.", param=where
                )
            case ToolResultBlock():
                _misplaced(block, where, "user")
            case _:
                texts.append(_text_of(block, where))
    text = "".join(texts)
    if text != text.rstrip():
        raise InvalidArgument(
            "The text that the answer begins with ends with white space.", hint="Remove it.", param=blocks[-1][0]
        )
    return text


def _read_input(role: str, blocks: Sequence[Placed], calls: dict[str, str]) -> list[Message]:
    """Return a turn of the user's (or instructions); the calls it has results of leave `calls`."""
    parts: list[str | Image] = []
    results: list[Message] = []
    for where, block in blocks:
        match block:
            case ToolResultBlock() if role == "user":
                if parts:
                    raise InvalidArgument("Results of tools come before any text.", param=where)
                results.append(_result(block, where, calls))
            case ThinkingBlock() | RedactedThinkingBlock() | ToolUseBlock():
                _misplaced(block, where, "assistant")
            case ToolResultBlock():
                _misplaced(block, where, "user")
            case ImageBlock() if role == "user":
                parts.append(_image(block, where))
            case _:
                text = _text_of(block, where)
                if not text:
                    raise InvalidArgument("The text is empty.", param=where)
                parts.append(text)
    if parts:
        results.append(message_of("system" if role == "system" else "user", parts, "\n"))
    return results


def _image(block: ImageBlock, where: str) -> Image:
    source = block.source
    if source.type == "base64" and source.data is not None:
        if source.data.startswith("data:"):  # what a form's attachment becomes
            return image_at(source.data, f"{where}.source.data")
        return image_in(source.data, source.media_type, f"{where}.source.data")
    if source.type == "url" and source.url is not None:
        return image_at(source.url, f"{where}.source.url")
    if source.type == "file":
        refuse(f"{where}.source", "no files are kept here", "Send the image itself.")
    field = "data" if source.type == "base64" else "url"
    raise InvalidArgument(f"The field '{where}.source.{field}' is required.", param=f"{where}.source.{field}")


def _result(block: ToolResultBlock, where: str, calls: dict[str, str]) -> Message:
    refuse_unless(f"{where}.toolset_name", block.toolset_name, why="there are no toolsets here")
    name = calls.pop(block.tool_use_id, None)
    if name is None:
        raise InvalidArgument(
            f"There is no call {block.tool_use_id!r} in the message before, or it has a result already.",
            param=f"{where}.tool_use_id",
        )
    content = [TextBlock(type="text", text=block.content)] if isinstance(block.content, str) else block.content or ()
    parts = [
        _image(part, f"{where}.content.{at}")
        if isinstance(part, ImageBlock)
        else _text_of(part, f"{where}.content.{at}")
        for at, part in enumerate(content)
    ]
    if block.is_error:  # chat templates know results only: the model must read that it failed
        first = parts.pop(0) if parts and isinstance(parts[0], str) else ""
        parts.insert(0, f"Error: {first}" if first else "Error")
    return replace(message_of("tool", parts, "\n"), tool_call_id=block.tool_use_id, name=name)


def _call(block: ToolUseBlock, where: str) -> ToolCall:
    refuse_unless(f"{where}.toolset_name", block.toolset_name, why="there are no toolsets here")
    if block.caller is not None and block.caller.type != "direct":
        refuse(f"{where}.caller", "only the model itself calls tools here")
    return ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False))


def _reasoning_of(block: ThinkingBlock, where: str) -> str:
    try:
        return block.thinking or hidden_reasoning(block.signature)
    except ValueError as error:
        raise InvalidArgument(
            f"The block cannot be read: {error}.",
            hint="Send it back as it came.",
            param=f"{where}.signature",
        ) from None


def _text_of(block: Block, where: str) -> str:
    """Return the text of a block that must be text."""
    if not isinstance(block, TextBlock):
        refuse(where, f"models here read text and users' images, not {block.type!r}", "Send those.")
    if block.citations:
        refuse(f"{where}.citations", "there are no citations here")
    return block.text


def _misplaced(block: Block, where: str, role: str) -> NoReturn:
    raise InvalidArgument(f"Only {role} messages have {block.type!r} blocks.", param=where)
