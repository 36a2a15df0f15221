"""What a body of the Responses API means for the engine."""

from __future__ import annotations

from typing import Any

import pytest

from lib_mlx.generation import GenerationRequest, Message
from lib_mlx.server.openai import chat_request
from lib_mlx.server.openai.response_items import ItemReader
from lib_mlx.server.openai.responses_request import ResponsesRequest, to_generation


def asked(**fields: Any) -> GenerationRequest:
    """The engine's request for a body."""
    body = ResponsesRequest.model_validate({"input": "hi", **fields})
    return to_generation(body, ItemReader(lambda _: None, str).read(body.input))


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_effort_goes_to_the_template(effort: str) -> None:
    """Templates that know efforts get it, in both of OpenAI's endpoints; to others it is reasoning or none."""
    body = chat_request.ChatRequest.model_validate(
        {"messages": [{"role": "user", "content": "hi"}], "reasoning_effort": effort}
    )
    for request in (asked(reasoning={"effort": effort}), chat_request.to_generation(body)):
        assert request.template_kwargs == {"reasoning_effort": effort}
        assert request.thinking == (effort != "none")


def test_the_clients_own_variables_go_first() -> None:
    """Whoever names a template's variable means it."""
    own = {"reasoning_effort": "extreme"}
    request = asked(reasoning={"effort": "low"}, chat_template_kwargs=own, thinking=False)
    assert (request.template_kwargs, request.thinking) == (own, False)
    assert asked().template_kwargs == {}


def test_instructions_stand_before_everything() -> None:
    """They are the system's first words."""
    assert asked(instructions="Be brief.").messages == (Message("system", "Be brief."), Message("user", "hi"))


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities(fields: dict[str, Any], logprobs: int | None) -> None:
    """They are reported if they are asked for, by name or by number."""
    assert asked(**fields).logprobs == logprobs


def test_allowed_tools_are_a_restriction_not_a_selection() -> None:
    """All tools are shown to the model."""
    tools = [{"type": "function", "name": name} for name in "abc"]
    choice = {"type": "allowed_tools", "mode": "required", "tools": tools[:2]}
    request = asked(tools=tools, tool_choice=choice)
    assert [tool.name for tool in request.tools] == ["a", "b", "c"]
    assert (request.tool_choice, request.allowed_tools) == ("required", frozenset("ab"))
    assert asked(tools=tools).allowed_tools is None
