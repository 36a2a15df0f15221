"""Reasoning of a bounded length, alone, in company, and before an answer of a guaranteed form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from lib_mlx.engine import engine
from lib_mlx.engine.detokenizer import WindowDetokenizer
from lib_mlx.engine.output_parser import ANSWER, REASONING, Opening, OutputFormat, OutputParser
from lib_mlx.engine.reasoning_limit import ReasoningLimit, ReasoningLimiter
from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Constraint, SamplingParams, Tool
from lib_mlx.models.checkpoint import inspect
from tests.checkpoints import SCRIPTS, Script, build
from tests.checkpoints.scripts import PARIS
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel

GREEDY = SamplingParams(temperature=0)
HOT = SamplingParams(temperature=60.0, seed=5)
WEATHER = Tool("get_weather", parameters={"type": "object"})
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def ponderer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineModel]:
    """A model that can reason without end, or call a tool while it reasons."""
    scripts = {
        **SCRIPTS,
        "ponder": Script("ponder", ("<think>", " hm", " so", " then"), end="loop"),
        "inner_call": Script("inner_call", ("<think>", " well", PARIS)),
    }
    loaded = engine.load(inspect(build(tmp_path_factory.mktemp("ponder") / "model", scripts=scripts)))
    yield loaded
    loaded.unload()


@pytest.mark.parametrize(
    ("budget", "reasoning"), [(0, ""), (1, "Let"), (2, "Let me"), (3, "Let me think"), (4, "Let me think.")]
)
def test_reasoning_ends_at_its_budget(model: EngineModel, budget: int, reasoning: str) -> None:
    """After so many tokens between the markers the end comes, and then the answer."""
    run = Run(model, "think", reasoning_budget=budget, sampling=GREEDY, max_tokens=12).wait()
    assert run.reasoning == reasoning
    assert run.text
    assert run.end.usage.reasoning == budget + 2


@pytest.mark.parametrize("budget", [4, 5, 1000])
def test_a_budget_that_suffices_changes_nothing(model: EngineModel, budget: int) -> None:
    """A model that closes its reasoning in time answers as it would have."""
    free, bound = (Run(model, "think", sampling=GREEDY, reasoning_budget=limit).wait() for limit in (None, budget))
    assert (free.text, free.reasoning, free.end.usage) == (bound.text, bound.reasoning, bound.end.usage)
    plain = Run(model, "hello", sampling=GREEDY, reasoning_budget=0).wait()
    assert plain.text == SCRIPTS["hello"].text()


@pytest.mark.parametrize(("family", "budget"), [("qwen_open_think", 1), ("gemma4", 0), ("mistral", 1)])
def test_other_families(crafted_family: Callable[[str], Path], family: str, budget: int) -> None:
    """Reasoning that the prompt opened, or that several tokens open, ends too."""
    loaded = engine.load(inspect(crafted_family(family)))
    try:
        run = Run(loaded, "think", reasoning_budget=budget, sampling=GREEDY, max_tokens=12).wait()
        free = Run(loaded, "think", sampling=GREEDY).wait()
    finally:
        loaded.unload()
    assert run.reasoning == "Let"
    assert run.text
    assert free.reasoning == "Let me think."


def test_reasoning_without_end(ponderer: EngineModel) -> None:
    """It is closed in any case."""
    run = Run(ponderer, "ponder", reasoning_budget=50, sampling=GREEDY, max_tokens=60).wait()
    assert run.end.usage.completion > run.end.usage.reasoning >= 52
    endless = Run(ponderer, "ponder", sampling=GREEDY, max_tokens=60).wait()
    assert (endless.text, endless.end.reason) == ("", "length")


def test_a_call_inside_reasoning_is_not_cut(ponderer: EngineModel) -> None:
    """It is no reasoning, however long it is."""
    run = Run(ponderer, "inner_call", reasoning_budget=2, sampling=GREEDY, tools=(WEATHER,), max_tokens=60).wait()
    assert (run.reasoning, run.calls) == ("well", [("get_weather", '{"city": "Paris"}')])


def test_the_answer_after_it_has_its_form(model: EngineModel) -> None:
    """A grammar binds from the forced end of the reasoning on."""
    constraint = Constraint("json_schema", CITY)
    options: dict[str, Any] = {"sampling": GREEDY, "reasoning_budget": 2, "max_tokens": 100}
    run = Run(model, "think", constraint=constraint, **options).wait()
    assert run.reasoning == "Let me"
    jsonschema.validate(json.loads(run.text), CITY)
    call = Run(model, "think", tools=(WEATHER,), tool_choice="required", parallel_tool_calls=False, **options).wait()
    assert call.reasoning == "Let me"
    assert [name for name, _ in call.calls] == ["get_weather"] or call.end.reason == "length"


@pytest.mark.parametrize(("forbidden", "left"), [(False, [2]), (True, [0, 1, 3])])
def test_what_a_grammar_forbids_is_not_forced(forbidden: bool, left: list[int]) -> None:
    """The end of reasoning is the only token left, unless it may not come at all: a row without any would be noise."""
    parser = OutputParser(OutputFormat({REASONING: (("</think>", ANSWER),)}), opening=Opening.IN_REASONING)
    limiter = ReasoningLimiter(
        ReasoningLimit(0, 2),
        parser=parser,
        detokenizer=WindowDetokenizer(lambda _: ""),
        hidden=frozenset(),
        prompt_length=1,
    )
    logits = mx.array([[1.0, 2.0, -mx.inf if forbidden else 0.0, 3.0]])
    for _ in range(2):  # asking twice changes nothing
        allowed = np.isfinite(np.array(limiter(mx.array([7]), logits)))[0]
        assert np.flatnonzero(allowed).tolist() == left


def test_in_company(ponderer: EngineModel) -> None:
    """Each row has its own budget, or none, and gives what it gives alone."""
    requests: list[tuple[str, dict[str, Any]]] = [
        ("think", {"reasoning_budget": 1, "sampling": GREEDY, "max_tokens": 20}),
        ("ponder", {"reasoning_budget": 9, "sampling": GREEDY, "max_tokens": 30}),
        ("think", {"sampling": GREEDY}),
        ("long", {"reasoning_budget": 5, "sampling": GREEDY}),
        ("ponder", {"sampling": GREEDY, "max_tokens": 30}),
        ("think", {"reasoning_budget": 2, "sampling": GREEDY, "constraint": Constraint("json_schema", CITY)}),
        ("inner_call", {"reasoning_budget": 2, "sampling": GREEDY, "tools": (WEATHER,), "max_tokens": 60}),
        ("hello", {"reasoning_budget": 3, "sampling": HOT, "max_tokens": 40}),
    ]
    alone = [Run(ponderer, script, **options).wait() for script, options in requests]
    together = [run.wait() for run in [Run(ponderer, script, **options) for script, options in requests]]
    for one, other in zip(alone, together, strict=True):
        assert (one.text, one.reasoning, one.calls) == (other.text, other.reasoning, other.calls)


def test_budgets_that_cannot_be_kept(crafted: Path, model: EngineModel, tmp_path: Path) -> None:
    """A negative one is wrong; one for a model whose reasoning is not marked is refused, unless it shall not reason."""
    with pytest.raises(InvalidArgument, match="negative"):
        Run(model, "think", reasoning_budget=-1)
    for file in crafted.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(
            content if file.suffix == ".safetensors" else content.replace(b"think>", b"mull>")
        )
    unmarked = engine.load(inspect(tmp_path))
    try:
        with pytest.raises(UnsupportedFeature, match="cannot be limited") as caught:
            Run(unmarked, "think", reasoning_budget=5)
        assert caught.value.param == "thinking"
        assert Run(unmarked, "hello", thinking=False, reasoning_budget=5).wait().text == SCRIPTS["hello"].text()
        assert (unmarked.reasons, unmarked.limits_reasoning) == (False, False)
    finally:
        unmarked.unload()
    assert (model.reasons, model.limits_reasoning) == (True, True)
