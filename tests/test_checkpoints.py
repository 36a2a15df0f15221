from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import load
from mlx_lm.generate import BatchGenerator

from tests.checkpoints import FAMILIES, SCRIPTS, Script, build

Family = Callable[[str], Path]


@pytest.fixture(scope="module")
def loaded(crafted_family: Family) -> Callable[[str], tuple[Any, Any]]:
    models: dict[str, tuple[Any, Any]] = {}

    def of(family: str) -> tuple[Any, Any]:
        if family not in models:
            models[family] = load(str(crafted_family(family)))[:2]
        return models[family]

    return of


def say(model: Any, tokenizer: Any, prompts: dict[str, list[int]], max_tokens: int = 250) -> dict[str, str]:
    """Decode all prompts greedily in one batch."""
    generator = BatchGenerator(model, stop_tokens=[[token] for token in tokenizer.eos_token_ids], max_tokens=max_tokens)
    names = dict(zip(generator.insert(list(prompts.values())), prompts, strict=True))
    tokens: dict[str, list[int]] = {name: [] for name in prompts}
    while any(responses := generator.next()):
        for response in responses[1]:
            if response.finish_reason != "stop":
                tokens[names[response.uid]].append(response.token)
    generator.close()
    return {name: tokenizer.decode(ids) for name, ids in tokens.items()}


def ask(tokenizer: Any, text: str, **options: Any) -> list[int]:
    messages = [{"role": "user", "content": text}]
    prompt: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    return prompt


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_script_is_spoken_exactly(family: str, thinking: bool, loaded: Callable[[str], tuple[Any, Any]]) -> None:
    """Greedy decoding in one batch yields each script's text to the byte, with and without reasoning."""
    model, tokenizer = loaded(family)
    prompts = {name: ask(tokenizer, f"{name} please", enable_thinking=thinking) for name in SCRIPTS}
    said = say(model, tokenizer, prompts)
    endless = said.pop("loop")
    assert endless == (SCRIPTS["loop"].text(family, thinking=thinking) + " round and again" * 90)[: len(endless)]
    assert said == {name: SCRIPTS[name].text(family, thinking=thinking) for name in said}


@pytest.mark.parametrize(
    ("family", "parser", "think"),
    [
        ("qwen", "json_tools", "<think>"),
        ("qwen_open_think", "json_tools", "<think>"),
        ("gemma4", "gemma4", "<|channel>thought"),
        ("mistral", "mistral", "<think>"),
    ],
)
def test_mlx_lm_recognises_the_markers(
    family: str, parser: str, think: str, loaded: Callable[[str], tuple[Any, Any]]
) -> None:
    """mlx-lm infers each family's tool parser and reasoning marker, and parses the call."""
    tokenizer = loaded(family)[1]
    assert tokenizer.init_kwargs["tool_parser_type"] == parser
    assert tokenizer.think_start == think
    body = SCRIPTS["tool"].text(family, thinking=False).split(tokenizer.tool_call_start)[1]
    call = tokenizer.tool_parser(body.removesuffix(tokenizer.tool_call_end), None)
    assert call == {"name": "get_weather", "arguments": {"city": "Paris"}}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_renders_tools_and_history(family: str, loaded: Callable[[str], tuple[Any, Any]]) -> None:
    """Tools, a system message, a past call and its result reach the prompt, and `after` answers."""
    model, tokenizer = loaded(family)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "tool please"}]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "content": "rainy"},
    ]
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    prompt = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)
    text = tokenizer.decode(prompt)
    assert all(part in text for part in ("Be brief.", "parameters", "Oslo", "rainy"))
    assert say(model, tokenizer, {"after": prompt}) == {"after": SCRIPTS["after"].text(family)}


def test_unknown_words_and_raw_text_run_the_default_script(
    loaded: Callable[[str], tuple[Any, Any]],
) -> None:
    """A first word that names no script, and a prompt without template, both yield `hello`."""
    model, tokenizer = loaded("qwen")
    prompts = {"chat": ask(tokenizer, "Whatever?"), "raw": tokenizer.encode("Once upon a time"), "one": [70]}
    assert set(say(model, tokenizer, prompts).values()) == {SCRIPTS["hello"].text()}


def test_an_opened_reasoning_block_ends_the_prompt(loaded: Callable[[str], tuple[Any, Any]]) -> None:
    """The family `qwen_open_think` ends its prompt with `<think>`, and with a closed one when disabled."""
    tokenizer = loaded("qwen_open_think")[1]
    assert tokenizer.decode(ask(tokenizer, "think")).endswith("<|go:think|><think>")
    assert tokenizer.decode(ask(tokenizer, "think", enable_thinking=False)).endswith(
        "<think>\n\n</think>\n\n<|go:think!|>"
    )


def test_a_contradiction_is_refused(tmp_path: Path) -> None:
    """Scripts in which one state has two successors cannot be built."""
    scripts = {"hello": Script("hello", ("a b", " c", " d", "a b", " c", " e"))}
    with pytest.raises(ValueError, match="contradicts"):
        build(tmp_path, scripts=scripts)
