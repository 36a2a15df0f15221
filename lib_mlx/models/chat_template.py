"""From a conversation to prompt tokens, by the checkpoint's own chat template."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lib_mlx.generation import Tool, ToolCall
    from lib_mlx.models.loader import LoadedTokenizer

_RESERVED = frozenset({
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize",
    "continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "enable_thinking", "load_audio_from_video",
})  # fmt: skip


def render_prompt(
    tokenizer: LoadedTokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    thinking: bool,
    template_kwargs: Mapping[str, Any],
) -> list[int]:
    """Return the prompt's tokens, with the template's opening of the assistant's turn at its end.

    Any thread; blocks while another thread uses the same tokenizer.

    Raises:
        UnsupportedFeature: the checkpoint has no chat template.
        InvalidArgument: the template refuses these messages, or a variable's name is reserved.
    """
    _refuse_reserved(template_kwargs)
    variables = {**template_kwargs, "enable_thinking": thinking, "add_generation_prompt": True}
    return list(_apply(tokenizer, messages, tools, tokenize=True, **variables))


def render_turns(
    tokenizer: LoadedTokenizer, messages: Sequence[Message], tools: Sequence[Tool], *, opened: bool
) -> list[int]:
    """Return the tokens of a conversation as it is, for training; with `opened` an assistant's turn begins at its end.

    A turn without reasoning may have an empty block of it, which is the model's to write: so is learnt to leave it out.
    Errors are those of `render_prompt`.
    """
    return list(_apply(tokenizer, messages, tools, tokenize=True, enable_thinking=True, add_generation_prompt=opened))


def _refuse_reserved(template_kwargs: Mapping[str, Any]) -> None:
    if reserved := _RESERVED.intersection(template_kwargs):
        name = min(reserved)
        raise InvalidArgument(
            f"The template variable {name!r} is set by the server.",
            hint="Remove it.",
            param=f"chat_template_kwargs.{name}",
        )


def render_begun(
    tokenizer: LoadedTokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    prefill: str,
    thinking: bool,
    template_kwargs: Mapping[str, Any],
) -> tuple[list[int], str]:
    """Return the prompt's tokens with the assistant's turn begun by `prefill`, and the text of that turn so far.

    The turn is what the template makes of an assistant's message, cut off behind `prefill`. Arguments and errors are
    otherwise those of `render_prompt`.

    Raises:
        UnsupportedFeature: the template does not keep the text as it is.
    """
    _refuse_reserved(template_kwargs)
    variables = {**template_kwargs, "enable_thinking": thinking, "tokenize": False, "add_generation_prompt": False}
    mark = f"END{secrets.token_hex(16)}"  # where the template puts the end of the text
    turns = [*messages, Message("assistant", prefill + mark)]
    text, *rest = str(_apply(tokenizer, turns, tools, **variables)).split(mark)
    if len(rest) != 1 or not text.endswith(prefill):
        raise UnsupportedFeature(
            "This model's chat template changes the text that the answer shall begin with.",
            hint="End the conversation with the user's message.",
            param="messages",
        )
    before = str(_apply(tokenizer, messages, tools, **variables)) if messages else ""
    with tokenizer.lock:
        prompt = tokenizer.wrapper.encode(text, add_special_tokens=False)
    return list(prompt), text[len(before) :] if text.startswith(before) else prefill


def generation_prompt(
    tokenizer: LoadedTokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    thinking: bool,
    template_kwargs: Mapping[str, Any],
) -> str:
    """Return what the template puts behind the last message to open the assistant's turn; "" if it is not apart.

    Renders text only: tokenising is what costs. Arguments and errors are those of `render_prompt`.
    """
    variables = {**template_kwargs, "enable_thinking": thinking, "tokenize": False}
    with_it, without = (
        str(_apply(tokenizer, messages, tools, add_generation_prompt=wanted, **variables)) for wanted in (True, False)
    )
    return with_it[len(without) :] if with_it.startswith(without) else ""


def message_boundaries(
    tokenizer: LoadedTokenizer,
    prompt: Sequence[int],
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    thinking: bool,
    template_kwargs: Mapping[str, Any],
) -> tuple[int, ...]:
    """Return where in `prompt` other conversations and later turns part from it, ascending.

    That is before the first user's text (after tools and instructions) and after the last message, before the
    template opens the assistant's turn. Found by rendering variants and comparing tokens.
    """
    variables = {**template_kwargs, "enable_thinking": thinking, "tokenize": True}
    turns = list(messages)
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    variants = [_apply(tokenizer, turns, tools, add_generation_prompt=False, **variables)]
    if first is not None:
        other = "b" if turns[first].content.lstrip().startswith("a") else "a"
        turns[first] = replace(turns[first], content=other, parts=())
        variants.append(_apply(tokenizer, turns, tools, add_generation_prompt=True, **variables))
    ends = {_agreement(prompt, variant) for variant in variants}
    return tuple(sorted(ends - {0, len(prompt)}))


def _agreement(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many items at the beginning of both are equal."""
    return next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def _apply(tokenizer: LoadedTokenizer, messages: Sequence[Message], tools: Sequence[Tool], **variables: Any) -> Any:
    wrapper = tokenizer.wrapper
    if not wrapper.has_chat_template:
        raise UnsupportedFeature(
            "This model has no chat template.", hint="Use an instruction-tuned checkpoint.", param="messages"
        )
    turns = to_template_messages(messages, (wrapper.think_start, wrapper.think_end))
    offered = [tool_json(tool) for tool in tools] or None
    try:
        with tokenizer.lock:
            return wrapper.apply_chat_template(turns, tools=offered, **variables)
    except Exception as error:  # a template is a program of the checkpoint's author and raises what it likes
        raise InvalidArgument(
            f"The model's chat template refuses these messages: {error}.",
            hint="Check the roles and their order.",
            param="messages",
        ) from error


def tool_json(tool: Tool) -> dict[str, Any]:
    """Return `tool` as chat templates and mlx-lm's tool parsers expect it."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def to_template_messages(
    messages: Sequence[Message], think: tuple[str | None, str | None] = (None, None)
) -> list[dict[str, Any]]:
    """Return `messages` as templates expect them.

    The reasoning of earlier turns is dropped, whether it came apart or inside the content: models are trained
    without it. The turn in progress (after the last user message) keeps it, for tool calls made while thinking.
    """
    last_user = max((index for index, turn in enumerate(messages) if turn.role == "user"), default=-1)
    return [_template_message(turn, index > last_user, think) for index, turn in enumerate(messages)]


def _template_message(turn: Message, current: bool, think: tuple[str | None, str | None]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": _template_content(turn)}
    if turn.role == "assistant":
        if not current:
            message["content"] = strip_reasoning(turn.content, think)
        elif turn.reasoning:
            message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = list(_template_calls(turn.tool_calls))
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    if turn.name is not None:
        message["name"] = turn.name
    return message


def _template_content(turn: Message) -> str | list[dict[str, str]]:
    if not turn.parts:
        return turn.content
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind} for part in turn.parts]


def _template_calls(calls: Iterable[ToolCall]) -> Iterable[dict[str, Any]]:
    for call in calls:
        # Templates print arguments with `tojson` and so need the object, not its text.
        try:
            arguments = json.loads(call.arguments) if call.arguments.strip() else {}
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise InvalidArgument(
                f"The arguments of the tool call {call.id!r} are not a JSON object.",
                hint="Send them back as the model wrote them.",
                param="messages",
            )
        yield {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def strip_reasoning(content: str, think: tuple[str | None, str | None]) -> str:
    """Return `content` without reasoning blocks, opened in the text or already in the prompt."""
    start, end = think
    if not start or not end or end not in content:
        return content
    content = re.sub(f"{re.escape(start)}.*?{re.escape(end)}", "", content, flags=re.DOTALL)
    if end in content:  # the block was opened by the template and is not part of the text
        content = content.rpartition(end)[2]
    return content.lstrip()
