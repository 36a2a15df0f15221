"""The items of a conversation in the Responses API: as they are sent, as they are kept, and as messages.

Whatever shape an item is sent in (a string, an "easy" message, a reference), it is kept in the one that the API
gives items out in: with an id, a status and typed parts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import Message, Role, ToolCall
from lib_mlx.server.fields import FunctionName, new_id, refuse, refuse_unless
from lib_mlx.server.http import WireModel
from lib_mlx.server.media import InputAudio, image_at, message_of, sound_in, video_at

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from lib_mlx.generation import Attachment

Item: TypeAlias = "dict[str, Any]"
"""An item as the API gives it out."""

_BEFORE = "previous_response_id"  # where parts are from that were not sent with the request
_TEXT_PARTS = {"input_text", "output_text", "text", "summary_text", "reasoning_text"}


class Part(WireModel):
    """One part of an item's content or output. Those that are not understood are parsed to be refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None
    """Added by OpenAI's own client when it parses."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    image_url: str | None = None
    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None
    input_audio: InputAudio | None = None
    video_url: str | None = None
    prompt_cache_breakpoint: Any = None


class InputItem(WireModel):
    """One item of the input; which fields may be set depends on `type` (absent: a message, or a reference)."""

    type: str | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    call_id: str | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None
    encrypted_content: str | None = None
    parsed_arguments: Any = None
    """Added by OpenAI's own client when it parses."""
    # Fields that are refused unless they ask for what happens anyway.
    caller: Any = None
    namespace: str | None = None


class ItemReader:
    """Brings the items of one request into the shape they are kept in.

    Args:
        find: returns the kept item of an id, None if there is none.
        unseal: returns the reasoning that an `encrypted_content` stands for; raises ValueError.
        taken: ids of the conversation so far: an item that comes again with one of them gets another.
    """

    def __init__(
        self, find: Callable[[str], Item | None], unseal: Callable[[str], str], taken: Collection[str] = ()
    ) -> None:
        self._find = find
        self._unseal = unseal
        self._taken = set(taken)

    def read(self, value: str | list[InputItem] | None) -> tuple[Item, ...]:
        """Return the items of a request's `input`.

        Raises:
            UnsupportedFeature: an item or a part of it cannot be read here.
            InvalidArgument: an item lacks a field that its type needs, or refers to none that is kept.
        """
        if isinstance(value, str):
            part = {"type": "input_text", "text": value}
            return (self._finished({"type": "message", "role": "user", "content": [part]}, "msg", None),)
        return tuple(self._item(item, f"input.{index}") for index, item in enumerate(value or ()))

    def _item(self, item: InputItem, where: str) -> Item:
        match item.type:
            case "message":
                return self._message(item, where)
            case "function_call":
                return self._call(item, where)
            case "function_call_output":
                return self._output(item, where)
            case "reasoning":
                return self._reasoning(item, where)
            case "item_reference":
                return self._referred(item, where)
            case None:
                refers = item.id is not None and item.role is None and item.content is None
                return self._referred(item, where) if refers else self._message(item, where)
            case _:
                refuse(f"{where}.type", f"{item.type!r} items cannot be read here", hint="Remove the item.")
                raise AssertionError  # refuse() raises

    def _message(self, item: InputItem, where: str) -> Item:
        if item.role is None:
            raise InvalidArgument("A message needs a role.", param=f"{where}.role")
        if item.content is None:
            raise InvalidArgument("The message has no content.", param=f"{where}.content")
        kind = "output_text" if item.role == "assistant" else "input_text"
        content = _parts(item.content, kind, f"{where}.content")
        message = {"type": "message", "role": item.role, "content": content}
        if item.phase is not None and item.role == "assistant":
            message["phase"] = item.phase
        return self._finished(message, "msg", item)

    def _call(self, item: InputItem, where: str) -> Item:
        if item.call_id is None or item.name is None or item.arguments is None:
            raise InvalidArgument("A function call needs call_id, name and arguments.", param=where)
        _refuse_programs(item, where)
        call = {"type": "function_call", "call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        return self._finished(call, "fc", item)

    def _output(self, item: InputItem, where: str) -> Item:
        if item.call_id is None or item.output is None:
            raise InvalidArgument("A function call's output needs call_id and output.", param=where)
        _refuse_programs(item, where)
        output = item.output if isinstance(item.output, str) else _parts(item.output, "input_text", f"{where}.output")
        kept = {"type": "function_call_output", "call_id": item.call_id, "output": output}
        return self._finished(kept, "fco", item)

    def _reasoning(self, item: InputItem, where: str) -> Item:
        summary = _parts(item.summary or [], "summary_text", f"{where}.summary")
        content = _parts(item.content or [], "reasoning_text", f"{where}.content")
        kept: Item = {"type": "reasoning", "summary": summary, "content": content}
        if item.encrypted_content is not None:
            kept["encrypted_content"] = item.encrypted_content
            if not content:
                kept["content"] = [{"type": "reasoning_text", "text": self._opened(item.encrypted_content, where)}]
        return self._finished(kept, "rs", item)

    def _opened(self, sealed: str, where: str) -> str:
        try:
            return self._unseal(sealed)
        except ValueError:
            raise InvalidArgument(
                "The encrypted content could not be verified: this server did not make it, or was restarted since.",
                hint="Remove the item, or send its content.",
                param=f"{where}.encrypted_content",
            ) from None

    def _referred(self, item: InputItem, where: str) -> Item:
        if item.id is None:
            raise InvalidArgument("A reference needs the id of an item.", param=f"{where}.id")
        found = self._find(item.id)
        if found is None:
            raise InvalidArgument(
                f"There is no item {item.id!r}.",
                hint="Items are kept in memory, only those of stored responses, and not for ever: send the item.",
                param=f"{where}.id",
            )
        return self._finished(found, str(found["id"]).partition("_")[0], None)

    def _finished(self, item: Item, prefix: str, sent: InputItem | None) -> Item:
        """Return `item` with an id of its own and a status."""
        wanted = (sent.id if sent is not None else item.get("id")) or new_id(prefix)
        key = new_id(prefix) if wanted in self._taken else wanted
        self._taken.add(key)
        status = (sent.status if sent is not None else item.get("status")) or "completed"
        return {**item, "id": key, "status": status}


def _refuse_programs(item: InputItem, where: str) -> None:
    refuse_unless(f"{where}.caller", item.caller, {"type": "direct"}, why="only the model calls functions here")
    refuse_unless(f"{where}.namespace", item.namespace, why="functions have no namespaces here")


def _parts(content: str | list[Part], kind: str, where: str) -> list[Item]:
    """Return the parts of `content`, all text among them of one kind."""
    if isinstance(content, str):
        return [_text_part(kind, content)]
    return [_part(part, kind, f"{where}.{index}") for index, part in enumerate(content)]


def _part(part: Part, kind: str, where: str) -> Item:
    refused = part.type == "refusal"
    if part.type == "input_image" and kind == "input_text":
        return _image_part(part, where)
    if part.type == "input_audio" and kind == "input_text":
        return _sound_part(part, where)
    if part.type == "input_video" and kind == "input_text":
        return _video_part(part, where)
    if not refused and part.type not in _TEXT_PARTS:
        refuse(where, f"users' text, images, sounds and videos are read, not {part.type!r}", hint="Send those.")
    refuse_unless(f"{where}.prompt_cache_breakpoint", part.prompt_cache_breakpoint, why="prompts are cached as a whole")
    text = part.refusal if refused else part.text
    if text is None:
        raise InvalidArgument("The part has no text.", param=f"{where}.text")
    if refused and kind == "output_text":
        return {"type": "refusal", "refusal": text}
    kept = _text_part(kind, text)
    if kind == "output_text":
        kept |= {"annotations": part.annotations or [], "logprobs": part.logprobs or []}
    return kept


def _image_part(part: Part, where: str) -> Item:
    if part.image_url is None:
        refuse_unless(f"{where}.file_id", part.file_id, why="no files are kept here")
        raise InvalidArgument("The part has no image.", param=f"{where}.image_url")
    image_at(part.image_url, f"{where}.image_url")  # complains now, when it is known where
    return {"type": "input_image", "image_url": part.image_url, "detail": part.detail or "auto"}


def _sound_part(part: Part, where: str) -> Item:
    if part.input_audio is None:
        raise InvalidArgument("The part has no sound.", param=f"{where}.input_audio")
    sound_in(part.input_audio, f"{where}.input_audio")  # as above
    return {"type": "input_audio", "input_audio": part.input_audio.model_dump(exclude_none=True)}


def _video_part(part: Part, where: str) -> Item:
    if part.video_url is None:
        raise InvalidArgument("The part has no video.", param=f"{where}.video_url")
    video_at(part.video_url, f"{where}.video_url")
    return {"type": "input_video", "video_url": part.video_url}


def _text_part(kind: str, text: str) -> Item:
    return output_text(text) if kind == "output_text" else {"type": kind, "text": text}


def output_text(text: str, logprobs: Iterable[Mapping[str, Any]] = ()) -> Item:
    """Return a part of an answer."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def to_messages(items: Sequence[Item], sent: int) -> list[Message]:
    """Return the conversation that kept items describe; what one assistant turn was split into is joined again.

    `sent` tells how many of them, the last ones, came with this request: errors name those.
    """
    messages: list[Message] = []
    reasoning = ""
    for at, item in enumerate(items, sent - len(items)):
        where = f"input.{at}" if at >= 0 else None
        match item["type"]:
            case "reasoning":
                reasoning += _text(item.get("content") or item["summary"])
                continue
            case "function_call":
                messages.append(_with_call(messages, item, reasoning))
            case "function_call_output":
                messages.append(_output_message(item, where))
            case _:
                role: Role = "system" if item["role"] == "developer" else item["role"]
                kept = reasoning if role == "assistant" else ""
                messages.append(replace(_message(role, item["content"], where and f"{where}.content"), reasoning=kept))
        reasoning = ""
    return messages


def _with_call(messages: list[Message], item: Item, reasoning: str) -> Message:
    """Return an assistant message with `item`'s call, taking over the one it continues."""
    call = ToolCall(item["call_id"], item["name"], item["arguments"])
    if messages and messages[-1].role == "assistant":
        previous = messages.pop()
        return Message(
            "assistant",
            previous.content,
            reasoning=previous.reasoning + reasoning,
            tool_calls=(*previous.tool_calls, call),
        )
    return Message("assistant", reasoning=reasoning, tool_calls=(call,))


def _output_message(item: Item, where: str | None) -> Message:
    return replace(_message("tool", item["output"], where and f"{where}.output"), tool_call_id=item["call_id"])


def _message(role: Role, content: str | list[Item], where: str | None) -> Message:
    if isinstance(content, str):
        return message_of(role, [content])
    return message_of(role, [_read(part, where and f"{where}.{at}") for at, part in enumerate(content)])


def _read(part: Item, where: str | None) -> str | Attachment:
    if part["type"] == "input_image":
        return image_at(part["image_url"], f"{where}.image_url" if where else _BEFORE, part["detail"])
    if part["type"] == "input_audio":
        return sound_in(InputAudio(**part["input_audio"]), f"{where}.input_audio" if where else _BEFORE)
    if part["type"] == "input_video":
        return video_at(part["video_url"], f"{where}.video_url" if where else _BEFORE)
    return str(part["refusal"] if part["type"] == "refusal" else part["text"])


def _text(content: str | list[Item]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in content)
