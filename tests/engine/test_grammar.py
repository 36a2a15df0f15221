"""Answers of a guaranteed form, on a model that would say something else."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from lib_mlx.engine import engine
from lib_mlx.engine.grammar import Gate
from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Constraint, SamplingParams, Tool
from lib_mlx.models.checkpoint import inspect
from tests.checkpoints import SCRIPTS
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "size": {"enum": ["big", "small"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
# A sampler hot enough that a crafted model, whose scripts win by over 60 logits, says anything.
HOT = SamplingParams(temperature=60.0, seed=1)
WEATHER = Tool("get_weather", parameters=CITY, strict=True)
ZONE = {"type": "object", "properties": {"zone": {"enum": [1, 2]}}, "required": ["zone"]}
TIME = Tool("get_time", parameters=ZONE)


def schema(value: dict[str, Any]) -> Constraint:
    """A JSON schema constraint."""
    return Constraint("json_schema", value)


@pytest.mark.parametrize("seed", range(4))
def test_a_schema_is_always_fulfilled(model: EngineModel, seed: int) -> None:
    """However wild the sampling, the answer is JSON that fits the schema, and it ends by itself."""
    sampling = SamplingParams(temperature=60.0, seed=seed)
    run = Run(model, "hello", constraint=schema(CITY), sampling=sampling, max_tokens=400).wait()
    assert run.end.reason == "stop"
    jsonschema.validate(json.loads(run.text), CITY)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint("regex", "[ab]{3,6}!"), r"[ab]{3,6}!"),
        (Constraint("lark", 'start: "yes" | "no"'), r"yes|no"),
        (Constraint("json_schema", {"enum": ["é", "日本"]}), '"é"|"日本"'),
    ],
)
def test_other_forms(model: EngineModel, constraint: Constraint, pattern: str) -> None:
    """Regular expressions, grammars and text beyond ASCII."""
    run = Run(model, "hello", constraint=constraint, sampling=HOT, max_tokens=60).wait()
    assert re.fullmatch(pattern, run.text)


def test_any_object(model: EngineModel) -> None:
    """`json_object` gives an object, even one cut short begins as one."""
    run = Run(model, "hello", constraint=Constraint("json_object"), sampling=HOT, max_tokens=300).wait()
    assert run.text.startswith("{")
    if run.end.reason == "stop":
        assert isinstance(json.loads(run.text), dict)


def test_reasoning_before_it_is_free(model: EngineModel, crafted_family: Callable[[str], Path]) -> None:
    """A model that reasons first does so unhindered, whether it opens the block itself or the prompt did."""
    greedy = SamplingParams(temperature=0)
    run = Run(model, "think", constraint=schema(CITY), sampling=greedy, max_tokens=200).wait()
    assert run.reasoning == "Let me think."
    jsonschema.validate(json.loads(run.text), CITY)
    closed = Run(model, "think", thinking=False, constraint=schema(CITY), sampling=greedy, max_tokens=200).wait()
    assert closed.reasoning == ""
    jsonschema.validate(json.loads(closed.text), CITY)
    opened = engine.load(inspect(crafted_family("qwen_open_think")))
    try:
        run = Run(opened, "think", constraint=schema(CITY), sampling=greedy, max_tokens=200).wait()
    finally:
        opened.unload()
    assert run.reasoning == "Let me think."
    jsonschema.validate(json.loads(run.text), CITY)


@pytest.mark.parametrize("choice", ["required", "get_weather"])
def test_a_forced_call(model: EngineModel, choice: str) -> None:
    """A model that would chat must call; the arguments fit the schema."""
    options: dict[str, Any] = {"tools": (WEATHER, TIME), "tool_choice": choice, "parallel_tool_calls": False}
    run = Run(model, "hello", thinking=False, sampling=HOT, max_tokens=400, **options).wait()
    assert (run.text, run.end.reason) == ("", "tool_calls")
    ((name, arguments),) = run.calls
    jsonschema.validate(json.loads(arguments), {"get_weather": WEATHER, "get_time": TIME}[name].parameters)
    assert choice in {"required", name}


def test_a_forced_call_after_reasoning(model: EngineModel) -> None:
    """Reasoning first, then the call."""
    greedy = SamplingParams(temperature=0)
    options: dict[str, Any] = {"tools": (WEATHER,), "tool_choice": "required", "parallel_tool_calls": False}
    run = Run(model, "think", sampling=greedy, max_tokens=300, **options).wait()
    assert run.reasoning == "Let me think."
    assert [name for name, _ in run.calls] == ["get_weather"]


def test_strict_tools_bind_only_calls(model: EngineModel) -> None:
    """With strict tools the model may still chat; when it calls, the arguments fit."""
    assert Run(model, "hello", tools=(WEATHER,)).wait().text == SCRIPTS["hello"].text()
    run = Run(model, "tool", tools=(WEATHER,), sampling=SamplingParams(temperature=0), max_tokens=300).wait()
    ((_, arguments),) = run.calls
    jsonschema.validate(json.loads(arguments), CITY)  # the script's own call lacks `size`


def test_different_forms_in_one_batch(model: EngineModel) -> None:
    """Each row has its own grammar, or none, and gives what it gives alone."""
    requests: list[tuple[str, dict[str, Any]]] = [
        ("hello", {"constraint": schema(CITY), "sampling": HOT, "max_tokens": 300}),
        ("long", {"sampling": SamplingParams(temperature=0)}),
        ("hello", {"constraint": Constraint("regex", "[ab]{30}"), "sampling": HOT}),
        ("think", {"constraint": schema(CITY), "sampling": SamplingParams(temperature=0), "max_tokens": 300}),
        ("tool", {"tools": (WEATHER,), "sampling": SamplingParams(temperature=0), "max_tokens": 300}),
    ]
    alone = [Run(model, script, **options).wait() for script, options in requests]
    together = [run.wait() for run in [Run(model, script, **options) for script, options in requests]]
    for one, other in zip(alone, together, strict=True):
        assert (one.text, one.reasoning, one.calls) == (other.text, other.reasoning, other.calls)


@pytest.mark.parametrize(
    ("constraint", "named"),
    [
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "strin"}), "strin"),
        (schema({"$ref": "#/nowhere"}), "nowhere"),
        (schema({"type": "string", "pattern": "(?=a)"}), "look-around"),
        (Constraint("regex", "(a"), "unclosed group"),
        (Constraint("lark", "start: nothing"), "nothing"),
    ],
)
def test_what_cannot_be_guaranteed_is_named(model: EngineModel, constraint: Constraint, named: str) -> None:
    """An unsupported or broken schema is refused before anything is generated, and the reason is named."""
    with pytest.raises(UnsupportedFeature, match=named) as caught:
        Run(model, "hello", constraint=constraint)
    assert caught.value.param == "response_format"


def test_tools_that_cannot_be_guaranteed(model: EngineModel) -> None:
    """A strict tool with an unsupported schema is refused by its index; one that is not strict is let through."""
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(UnsupportedFeature, match="uniqueItems") as caught:
        Run(model, "hello", tools=(WEATHER, Tool("f", parameters=odd, strict=True)))
    assert caught.value.param == "tools.1"
    loose = Run(model, "hello", tools=(Tool("f", parameters=odd),), tool_choice="f", sampling=HOT, max_tokens=40)
    assert loose.wait().end.usage.completion > 0


def test_contradictions(model: EngineModel) -> None:
    """A form and tools together, or a choice without its tool, are refused."""
    with pytest.raises(UnsupportedFeature, match="together"):
        Run(model, "hello", tools=(WEATHER,), constraint=schema(CITY))
    with pytest.raises(InvalidArgument, match="tool_choice"):
        Run(model, "hello", tools=(WEATHER,), tool_choice="other")


@pytest.mark.parametrize("family", ["gemma4", "mistral"])
def test_models_whose_calls_cannot_be_enforced_say_so(crafted_family: Callable[[str], Path], family: str) -> None:
    """Forcing a call in a syntax that is not known is refused; a plain schema works."""
    loaded = engine.load(inspect(crafted_family(family)))
    try:
        with pytest.raises(UnsupportedFeature, match="cannot be enforced"):
            Run(loaded, "hello", tools=(WEATHER,), tool_choice="required")
        run = Run(loaded, "hello", thinking=False, constraint=schema(CITY), sampling=HOT, max_tokens=300).wait()
    finally:
        loaded.unload()
    jsonschema.validate(json.loads(run.text), CITY)


def test_a_grammar_is_compiled_once(model: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same schema again costs nothing; only so many are kept, those used last."""
    monkeypatch.setattr("lib_mlx.engine.grammar._KEPT", 2)
    compiler = model._preparer._grammars
    compiler._compiled.clear()
    first, again, other, third = (
        compiler.constraint(Constraint("regex", pattern), Gate()).matcher for pattern in ("a+", "a+", "b+", "c+")
    )
    assert first is again
    assert len({id(first), id(other), id(third)}) == 3
    assert compiler.constraint(Constraint("regex", "a+"), Gate()).matcher is not first
