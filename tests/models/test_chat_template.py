"""Conversations through chat templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoTokenizer

from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Message, Tool, ToolCall
from lib_mlx.models.chat_template import (
    generation_prompt,
    render_begun,
    render_prompt,
    strip_reasoning,
    to_template_messages,
)
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import LoadedTokenizer, load_tokenizer
from tests.checkpoints import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

THINK = ("<think>", "</think>")


@pytest.fixture(scope="module")
def tokenizer(crafted: Path) -> LoadedTokenizer:
    """The crafted model's tokenizer."""
    return load_tokenizer(inspect(crafted))


def rendered(tokenizer: LoadedTokenizer, *messages: Message, tools: tuple[Tool, ...] = (), **options: Any) -> str:
    """Return the prompt as text."""
    options = {"thinking": True, "template_kwargs": {}} | options
    text: str = tokenizer.wrapper.decode(render_prompt(tokenizer, messages, tools, **options))
    return text


def test_a_conversation(tokenizer: LoadedTokenizer) -> None:
    """Roles and contents stand in the prompt in order, and it ends where the assistant begins."""
    text = rendered(tokenizer, Message("system", "Be brief."), Message("user", "hello"))
    assert text.index("Be brief.") < text.index("hello") < text.index("<|go:hello|>")


def test_tools_and_calls(tokenizer: LoadedTokenizer) -> None:
    """Tools, calls (with arguments as JSON, not as a quoted string) and results reach the template."""
    text = rendered(
        tokenizer,
        Message("user", "tool"),
        Message("assistant", tool_calls=(ToolCall("call_1", "get_weather", '{"city": "Paris"}'),)),
        Message("tool", "sunny", tool_call_id="call_1"),
        tools=(Tool("get_weather", "Weather", {"type": "object"}),),
    )
    assert '"description": "Weather"' in text
    assert '"arguments": {"city": "Paris"}' in text
    assert "sunny" in text
    assert "<|go:after|>" in text


def test_thinking_reaches_the_template(tokenizer: LoadedTokenizer) -> None:
    """With thinking off the template closes the block."""
    assert "</think>" in rendered(tokenizer, Message("user", "hello"), thinking=False)
    assert "</think>" not in rendered(tokenizer, Message("user", "hello"))


def test_the_generation_prompt_is_what_the_template_adds(tokenizer: LoadedTokenizer) -> None:
    """It is the end of the prompt and holds nothing a user wrote."""
    messages = (Message("user", "hello <think>"),)
    for thinking in (True, False):
        tail = generation_prompt(tokenizer, messages, (), thinking=thinking, template_kwargs={})
        assert rendered(tokenizer, *messages, thinking=thinking).endswith(tail)
        assert tail.startswith("<|im_start|>assistant")
        assert ("<think>" in tail) != thinking


def assert_begun_as_by_transformers(path: Path) -> None:
    """Demand that an answer that has begun gives the prompt that transformers makes of it."""
    begun = load_tokenizer(inspect(path))
    theirs = AutoTokenizer.from_pretrained(path, local_files_only=True)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Dear é"}]
    messages = [Message("system", "Be brief."), Message("user", "Dear é")]
    for prefill in ("Dear", " é\n日本", "<|im_end|>", "a" * 50, "im_end", "<"):
        options: dict[str, Any] = {"thinking": False, "template_kwargs": {}}
        prompt, turn = render_begun(begun, messages, (), prefill=prefill, **options)
        chat = [*turns, {"role": "assistant", "content": prefill}]
        assert prompt == theirs.apply_chat_template(
            chat, continue_final_message=True, enable_thinking=False, return_dict=False
        )
        assert turn.endswith(prefill)
        assert "Dear é" not in turn


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_has_begun(crafted_family: Callable[[str], Path], family: str) -> None:
    """The prompt is the one of transformers' `continue_final_message`, also where the text is in the template too."""
    assert_begun_as_by_transformers(crafted_family(family))


@pytest.mark.model
def test_an_answer_of_a_real_model_that_has_begun(smollm2: Path) -> None:
    """So is that of a real checkpoint."""
    assert_begun_as_by_transformers(smollm2)


def test_earlier_reasoning_is_dropped() -> None:
    """Reasoning of earlier turns goes, apart or inside the content; that of the turn in progress stays."""
    earlier, current = to_template_messages(
        [
            Message("assistant", "<think>\nold\n</think>\n\nanswer", reasoning="old"),
            Message("user", "next"),
            Message("assistant", "looking", reasoning="now", tool_calls=(ToolCall("c", "f", "{}"),)),
            Message("tool", "x", tool_call_id="c"),
        ],
        THINK,
    )[0:3:2]
    assert earlier == {"role": "assistant", "content": "answer"}
    assert current["reasoning_content"] == "now"


@pytest.mark.parametrize(
    ("content", "left"),
    [
        ("<think>a</think>b", "b"),
        ("<think>a</think>\n\nb<think>c</think>d", "bd"),
        ("a</think>\nb", "b"),
        ("no markers", "no markers"),
        ("a <think> b", "a <think> b"),
    ],
)
def test_strip_reasoning(content: str, left: str) -> None:
    """Whole blocks, and one that the template had opened, are removed; anything else is content."""
    assert strip_reasoning(content, THINK) == left
    assert strip_reasoning(content, (None, None)) == content


def test_bad_arguments_in_the_history(tokenizer: LoadedTokenizer) -> None:
    """Arguments that are not JSON are the client's mistake."""
    with pytest.raises(InvalidArgument, match="call_1"):
        rendered(tokenizer, Message("user", "x"), Message("assistant", tool_calls=(ToolCall("call_1", "f", "{"),)))


def test_a_template_that_refuses(tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template's own complaint is passed on as a client error."""
    monkeypatch.setattr(tokenizer.wrapper._tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidArgument, match="roles must alternate"):
        rendered(tokenizer, Message("user", "x"))


def test_no_template(tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model cannot chat, and says so."""
    monkeypatch.setattr(tokenizer.wrapper._tokenizer, "has_chat_template", False)
    with pytest.raises(UnsupportedFeature, match="chat template"):
        rendered(tokenizer, Message("user", "x"))


def test_variables_of_the_server_cannot_be_overridden(tokenizer: LoadedTokenizer) -> None:
    """Template variables must not turn tokenising off."""
    with pytest.raises(InvalidArgument, match="tokenize"):
        rendered(tokenizer, Message("user", "x"), template_kwargs={"tokenize": False})
