"""Answers of a guaranteed form, on a model that would say something else."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import jsonschema
import mlx.core as mx
import pytest

from lib_mlx.engine import engine
from lib_mlx.engine.grammar import Gate, GrammarProcessor
from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Constraint, GenerationRequest, Message, SamplingParams, Tool
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


YES_OR_NO = {
    "type": "object",
    "properties": {"n": {"type": "boolean"}},
    "required": ["n"],
    "additionalProperties": False,
}


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


@pytest.mark.parametrize("text", ["<think>", "</think>", "<tool_call>{}</tool_call>", "<|im_end|>"])
def test_a_form_that_spells_a_marker(model: EngineModel, text: str) -> None:
    """What a schema demands is text, though it be spelled like a marker or a control token."""
    run = Run(model, "hello", constraint=schema({"enum": [text]}), thinking=False, max_tokens=60).wait()
    assert (run.end.reason, run.text) == ("stop", json.dumps(text))


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


@pytest.mark.parametrize("seed", range(3))
def test_no_property_is_invented(model: EngineModel, seed: int) -> None:
    """A schema that says nothing of further properties gets an answer without any, and one that ends."""
    value = {**CITY}
    del value["additionalProperties"]
    sampling = SamplingParams(temperature=60.0, seed=seed)
    run = Run(model, "hello", constraint=schema(value), sampling=sampling, max_tokens=400).wait()
    assert run.end.reason == "stop"
    assert set(json.loads(run.text)) == {"city", "size"}


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
    """A form that cannot be one of two, or a choice without its tool, are refused."""
    with pytest.raises(UnsupportedFeature, match="together") as caught:
        Run(model, "hello", tools=(WEATHER,), constraint=Constraint("regex", "a"))
    assert caught.value.param == "response_format"
    with pytest.raises(InvalidArgument, match="tool_choice"):
        Run(model, "hello", tools=(WEATHER,), tool_choice="other")


@pytest.mark.parametrize("family", ["gemma4", "mistral"])
def test_models_whose_calls_cannot_be_enforced_say_so(crafted_family: Callable[[str], Path], family: str) -> None:
    """Forcing a call in a syntax that is not known is refused; a plain schema works."""
    loaded = engine.load(inspect(crafted_family(family)))
    try:
        with pytest.raises(UnsupportedFeature, match="cannot be enforced"):
            Run(loaded, "hello", tools=(WEATHER,), tool_choice="required")
        with pytest.raises(UnsupportedFeature, match="together"):
            Run(loaded, "hello", tools=(WEATHER,), constraint=schema(CITY))
        run = Run(loaded, "hello", thinking=False, constraint=schema(CITY), sampling=HOT, max_tokens=300).wait()
    finally:
        loaded.unload()
    jsonschema.validate(json.loads(run.text), CITY)


def either(run: Run, form: dict[str, Any] = YES_OR_NO) -> str:
    """Demand that a run ended with calls that fit or with an answer in the form; tell which."""
    assert run.end.reason in {"stop", "tool_calls"}
    for _, arguments in run.calls:
        jsonschema.validate(json.loads(arguments), CITY)
    if run.calls:
        assert run.text == ""
        return "calls"
    jsonschema.validate(json.loads(run.text), form)
    return "form"


def test_calls_or_a_form(model: EngineModel) -> None:
    """With tools and a form the answer is one or the other, however wild the sampling, and both do come."""
    options: dict[str, Any] = {"tools": (WEATHER,), "constraint": schema(YES_OR_NO), "parallel_tool_calls": False}
    runs = [
        Run(model, "hello", thinking=False, sampling=SamplingParams(temperature=60.0, seed=seed), **options)
        for seed in range(12)
    ]
    assert {either(run.wait()) for run in runs} == {"calls", "form"}
    any_object = Run(model, "tool", **{**options, "constraint": Constraint("json_object")}).wait()
    assert [name for name, _ in any_object.calls] == ["get_weather"]


def test_calls_or_a_form_after_reasoning(model: EngineModel, crafted_family: Callable[[str], Path]) -> None:
    """Reasoning is free, whoever opened it; in a batch each gives what it gives alone."""
    options: dict[str, Any] = {"tools": (WEATHER,), "constraint": schema(YES_OR_NO), "parallel_tool_calls": False}
    options |= {"sampling": SamplingParams(temperature=0), "max_tokens": 300}
    opened = engine.load(inspect(crafted_family("qwen_open_think")))
    try:
        for loaded in (model, opened):
            scripts = ("think", "think_tool", "hello")
            alone = [Run(loaded, script, **options).wait() for script in scripts]
            together = [run.wait() for run in [Run(loaded, script, **options) for script in scripts]]
            assert [(run.text, run.reasoning, run.calls) for run in alone] == [
                (run.text, run.reasoning, run.calls) for run in together
            ]
            assert [run.reasoning for run in alone[:2]] == ["Let me think.", "I need weather"]
            assert {either(run) for run in alone} <= {"calls", "form"}
    finally:
        opened.unload()


def test_a_forced_call_leaves_the_form_aside(model: EngineModel) -> None:
    """Required or named, the call is made."""
    for choice in ("required", "get_weather"):
        run = Run(
            model, "hello", thinking=False, tools=(WEATHER,), tool_choice=choice, constraint=schema(YES_OR_NO),
            parallel_tool_calls=False, sampling=HOT, max_tokens=400,
        ).wait()  # fmt: skip
        assert either(run) == "calls"


def test_what_is_wrong_with_the_form_is_told_of_the_form(model: EngineModel) -> None:
    """Tools or not."""
    with pytest.raises(UnsupportedFeature, match="uniqueItems") as caught:
        Run(model, "hello", tools=(WEATHER,), constraint=schema({"type": "array", "uniqueItems": True}))
    assert caught.value.param == "response_format"


def test_only_allowed_tools_are_called(model: EngineModel) -> None:
    """A grammar leaves room for them alone; without one, a call of another tool is text."""
    clock = Tool("get_time", parameters=CITY)
    options: dict[str, Any] = {"tools": (WEATHER, clock), "allowed_tools": frozenset({"get_time"})}
    for choice in ("required", "auto"):
        run = Run(
            model, "tool", thinking=False, tool_choice=choice, constraint=schema(YES_OR_NO),
            parallel_tool_calls=False, sampling=SamplingParams(temperature=0), max_tokens=300, **options,
        ).wait()  # fmt: skip
        assert [name for name, _ in run.calls] == ["get_time"]
    loose = {**options, "tools": (Tool("get_weather"), Tool("get_time"))}
    run = Run(model, "tools", sampling=SamplingParams(temperature=0), **loose).wait()
    assert [name for name, _ in run.calls] == ["get_time"]
    assert "get_weather" in run.text


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_inside_the_reasoning_is_held_to_its_grammar(model: EngineModel, choice: str) -> None:
    """A model that begins a call without closing its reasoning is bound from there on."""
    request = GenerationRequest(
        (Message("user", "think"),), tools=(WEATHER,), tool_choice=choice, constraint=schema(YES_OR_NO)
    )
    prepared = model.prepare(request)
    assert prepared.grammar is not None
    wrapper = model._tokenizer.wrapper
    process = GrammarProcessor(prepared.grammar, len(prepared.prompt))
    tokens = [*prepared.prompt]
    for token, bound in (
        (wrapper.think_start_tokens[0], False),
        (wrapper.backend_tokenizer.token_to_id("a"), False),
        (None, True),
    ):
        tokens.append(wrapper.backend_tokenizer.token_to_id("<tool_call>") if token is None else token)
        logits = process(mx.array(tokens), mx.zeros((1, model.vocab_size)))
        masked = int((logits == -mx.inf).sum())
        assert (masked > model.vocab_size // 2) == bound


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


@pytest.mark.model
def test_a_real_model(smollm2: Path) -> None:
    """A schema binds a model whose control tokens stand in its vocabulary proper, and may spell one."""
    form = {**CITY, "properties": {**CITY["properties"], "end": {"const": "<|im_end|>"}}, "required": ["city", "end"]}
    loaded = engine.load(inspect(smollm2))
    try:
        run = Run(loaded, "Where is the Eiffel Tower?", constraint=schema(form), max_tokens=80).wait()
        assert run.end.reason == "stop"
        jsonschema.validate(json.loads(run.text), form)
    finally:
        loaded.unload()
