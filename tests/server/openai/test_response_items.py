"""Items: as sent, as kept, as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseItem

from lib_mlx.errors import InvalidArgument, LibMlxError, UnsupportedFeature
from lib_mlx.generation import Message, ToolCall
from lib_mlx.server.openai.response_items import InputItem, ItemReader, to_messages
from tests.server.specs import check

if TYPE_CHECKING:
    from lib_mlx.server.openai.response_items import Item

KEPT: dict[str, Item] = {
    "msg_kept": {
        "type": "message",
        "id": "msg_kept",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "kept"}],
    }
}


def unseal(text: str) -> str:
    """Open what begins with "sealed "."""
    if not text.startswith("sealed "):
        raise ValueError(text)
    return text.removeprefix("sealed ")


def read(*items: dict[str, Any], taken: tuple[str, ...] = ()) -> tuple[Item, ...]:
    """Read items; demand that they are what the API gives out."""
    reader = ItemReader(KEPT.get, unseal, taken)
    found = reader.read([InputItem.model_validate(item) for item in items])
    for item in found:
        check("openresponses", "ItemField", item)
        check("openai", "ItemResource", item)
        pydantic.TypeAdapter[Any](ResponseItem).validate_python(item)
    return found


CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}


@pytest.mark.parametrize("role", ["user", "system", "developer", "assistant"])
def test_messages_of_every_role(role: str) -> None:
    """A text and parts are one message; parts have the type that fits the role, whatever they were sent as."""
    kind = "output_text" if role == "assistant" else "input_text"
    for content in ("hi", [{"type": "input_text", "text": "h"}, {"type": "output_text", "text": "i"}]):
        (item,) = read({"role": role, "content": content})
        assert {part["type"] for part in item["content"]} == {kind}
        assert item["id"].startswith("msg_")
        assert to_messages([item], 1) == [Message("system" if role == "developer" else role, "hi")]  # type: ignore[arg-type]


def test_a_string_is_a_message_of_the_user() -> None:
    """The simplest input."""
    (item,) = ItemReader(KEPT.get, unseal).read("hi")
    assert to_messages([item], 1) == [Message("user", "hi")]
    assert ItemReader(KEPT.get, unseal).read(None) == ()


def test_one_turn_of_the_assistant_is_joined() -> None:
    """Reasoning, text and calls are one message; outputs are the tool's, as text or as parts."""
    parts = {**OUTPUT, "output": [{"type": "input_text", "text": "sun"}, {"type": "input_text", "text": "ny"}]}
    said = {"type": "message", "role": "assistant", "content": "Looking.", "phase": "commentary"}
    items = read(THOUGHT, said, CALL, {**CALL, "call_id": "call_2"}, OUTPUT, parts)
    assert items[1]["phase"] == "commentary"
    calls = (ToolCall("call_1", "f", "{}"), ToolCall("call_2", "f", "{}"))
    assert to_messages(items, len(items)) == [
        Message("assistant", "Looking.", reasoning="hm", tool_calls=calls),
        Message("tool", "sunny", tool_call_id="call_1"),
        Message("tool", "sunny", tool_call_id="call_1"),
    ]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "hm"),
        ({"encrypted_content": "another's"}, "hm"),
        ({"content": None, "encrypted_content": "sealed thought"}, "thought"),
        ({"content": None, "summary": [{"type": "summary_text", "text": "in short"}]}, "in short"),
        ({"content": None}, ""),
    ],
)
def test_reasoning_is_read_from_what_there_is(fields: dict[str, Any], text: str) -> None:
    """Its content, else what it was sealed as, else its summary."""
    items = read({**THOUGHT, **fields}, {"role": "assistant", "content": "x"})
    assert to_messages(items, len(items)) == [Message("assistant", "x", reasoning=text)]


def test_references() -> None:
    """An item is found by its id, with a type or without; again, it gets an id of its own."""
    typed, bare = read({"type": "item_reference", "id": "msg_kept"}, {"id": "msg_kept"})
    assert typed == KEPT["msg_kept"]
    assert bare["id"] != "msg_kept"
    assert {**bare, "id": "msg_kept"} == typed


def test_ids() -> None:
    """A client's own are kept, unless something in the conversation has them already."""
    first, second, third = read(
        {**CALL, "id": "fc_1"}, {**CALL, "id": "fc_1"}, {**OUTPUT, "id": "fc_0"}, taken=("fc_0",)
    )
    assert first["id"] == "fc_1"
    assert len({first["id"], second["id"], third["id"], "fc_0"}) == 4


def test_a_refusal_is_kept_as_one() -> None:
    """In a message of the assistant."""
    (item,) = read({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]})
    assert item["content"] == [{"type": "refusal", "refusal": "No."}]
    assert to_messages([item], 1) == [Message("assistant", "No.")]


@pytest.mark.parametrize(
    ("item", "error", "param"),
    [
        ({**CALL, "caller": {"type": "program", "caller_id": "x"}}, UnsupportedFeature, "input.0.caller"),
        ({**CALL, "namespace": "n"}, UnsupportedFeature, "input.0.namespace"),
        ({**OUTPUT, "output": [{"type": "input_file"}]}, UnsupportedFeature, "input.0.output.0"),
        ({**OUTPUT, "output": [{"type": "input_image"}]}, InvalidArgument, "input.0.output.0.image_url"),
        ({**OUTPUT, "output": None}, InvalidArgument, "input.0"),
        ({**THOUGHT, "content": None, "encrypted_content": "x"}, InvalidArgument, "input.0.encrypted_content"),
        ({"type": "item_reference", "id": "msg_gone"}, InvalidArgument, "input.0.id"),
        ({"role": "user"}, InvalidArgument, "input.0.content"),
        ({"type": "compaction", "id": "x", "encrypted_content": "y"}, UnsupportedFeature, "input.0.type"),
    ],
)
def test_refusals(item: dict[str, Any], error: type[LibMlxError], param: str) -> None:
    """What cannot be read is named."""
    with pytest.raises(error) as caught:
        read(item)
    assert caught.value.param == param


TEXT = st.text(max_size=3)
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "reasoning", "function_call", "function_call_output", "item_reference"]),
        "id": st.sampled_from(["msg_kept", "a", "b"]),
        "role": st.sampled_from(["user", "assistant", "system", "developer"]),
        "content": TEXT | st.lists(st.fixed_dictionaries({"type": st.just("input_text"), "text": TEXT}), max_size=2),
        "call_id": TEXT,
        "name": st.just("f"),
        "arguments": st.just("{}"),
        "output": TEXT,
        "encrypted_content": TEXT,
        "status": st.sampled_from(["completed", "incomplete"]),
    },
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # the schemas are read once
@given(st.lists(ITEM, max_size=4))
def test_any_items_are_kept_validly_or_refused(items: list[dict[str, Any]]) -> None:
    """Whatever is sent is either an error of ours that names it, or items with ids of their own."""
    named = ""
    found: tuple[Item, ...] = ()
    try:
        found = read(*items)
    except LibMlxError as error:
        named = str(error.param)
    if named:
        assert named.startswith("input.")
        return
    assert len({item["id"] for item in found}) == len(items)
    to_messages(found, len(found))
