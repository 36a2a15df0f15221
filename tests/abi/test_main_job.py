"""The main job: OpenAI's own clients talk to a model that a C program loaded and serves."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.checkpoints import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.abi.conftest import Programs

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


@contextlib.contextmanager
def served_by_c(programs: Programs, model: Path) -> Iterator[str]:
    """Run the C host on `model`; yield its base URL; demand that it ends well."""
    with subprocess.Popen(
        [programs.build("serve"), model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as host:
        assert host.stdout is not None
        port = host.stdout.readline().strip()
        try:
            assert port, host.stderr and host.stderr.read()
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            output, errors = host.communicate(timeout=30)
    assert (host.returncode, output, errors) == (0, "", "")


@pytest.fixture(scope="module")
def crafted_url(programs: Programs, crafted: Path) -> Iterator[str]:
    """The crafted model, served by C."""
    with served_by_c(programs, crafted) as url:
        yield url


@pytest.fixture(scope="module")
def smollm2_url(programs: Programs, smollm2: Path) -> Iterator[str]:
    """SmolLM2, served by C."""
    with served_by_c(programs, smollm2) as url:
        yield url


def ask_four_ways(url: str, messages: list[Any], **options: Any) -> set[str]:
    """Return the answers of chat and responses, streamed and not, by the synchronous client."""
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        (model,) = client.models.list().data
        chat: dict[str, Any] = {"model": model.id, "messages": messages, "temperature": 0, **options}
        respond: dict[str, Any] = {"model": model.id, "input": messages, "temperature": 0}
        whole = client.chat.completions.create(**chat).choices[0].message.content
        chunks = client.chat.completions.create(**chat, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        response = client.responses.create(**respond).output_text
        events = client.responses.create(**respond, stream=True)
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    return {whole or "", streamed, response, deltas}


async def ask_four_ways_at_once(url: str, messages: list[Any]) -> set[str]:
    """Return the same by the asynchronous client, all four at the same time."""
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        model = (await client.models.list()).data[0].id
        chat: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0}
        respond: dict[str, Any] = {"model": model, "input": messages, "temperature": 0}

        async def whole() -> str:
            return (await client.chat.completions.create(**chat)).choices[0].message.content or ""

        async def streamed() -> str:
            chunks = await client.chat.completions.create(**chat, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        async def response() -> str:
            return str((await client.responses.create(**respond)).output_text)

        async def deltas() -> str:
            events = await client.responses.create(**respond, stream=True)
            return "".join([event.delta async for event in events if event.type == "response.output_text.delta"])

        return set(await asyncio.gather(whole(), streamed(), response(), deltas()))


@pytest.mark.parametrize("script", ["hello", "unicode", "broken_tool", "stopword"])
def test_crafted_text(crafted_url: str, script: str) -> None:
    """Plain, multi-byte and broken output arrives to the letter in all four ways, with both clients."""
    messages = [{"role": "user", "content": script}]
    expected = {SCRIPTS[script].text()}
    assert ask_four_ways(crafted_url, messages) == expected
    assert asyncio.run(ask_four_ways_at_once(crafted_url, messages)) == expected


def test_crafted_reasoning_and_tools(crafted_url: str) -> None:
    """Reasoning and tool calls arrive as such."""
    with openai.OpenAI(base_url=crafted_url, api_key="unused", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="crafted", messages=[{"role": "user", "content": "think_tool"}], tools=TOOLS, temperature=0
        ).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert (answer.message.model_extra or {})["reasoning_content"] == "I need weather"
    (call,) = answer.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')


def test_crafted_endless_loop(crafted_url: str) -> None:
    """An endless answer is cut where it was told to be."""
    with openai.OpenAI(base_url=crafted_url, api_key="unused", max_retries=0) as client:
        answer = client.responses.create(model="crafted", input="loop", max_output_tokens=9)
    assert answer.status == "incomplete"
    assert answer.output_text == " round and again" * 3


@pytest.mark.model
def test_smollm2(smollm2_url: str) -> None:
    """A real model answers a real question, the same in all four ways, with both clients."""
    answers = ask_four_ways(smollm2_url, QUESTION) | asyncio.run(ask_four_ways_at_once(smollm2_url, QUESTION))
    assert answers == {"The capital of France is Paris."}
