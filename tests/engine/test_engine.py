"""The engine on crafted checkpoints: what goes in, what comes out, what is refused."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.config import EngineConfig, GenerationDefaults
from lib_mlx.engine import engine
from lib_mlx.engine.output_parser import OutputFormat
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import (
    Cancelled,
    ContextLengthExceeded,
    InvalidArgument,
    UnsupportedFeature,
)
from lib_mlx.generation import GenerationRequest, Message, SamplingParams, Tool
from lib_mlx.models.checkpoint import inspect
from tests.checkpoints import SCRIPTS
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel

WEATHER = Tool("get_weather", "Weather of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
PARIS = ("get_weather", '{"city": "Paris"}')
TOKYO = ("get_time", '{"zone": "Asia/Tokyo"}')
GREEDY = SamplingParams(temperature=0)


@pytest.mark.parametrize("name", ["hello", "unicode", "bad_utf8", "stopword", "long", "empty"])
def test_plain_scripts_come_out_as_written(model: EngineModel, name: str) -> None:
    """The answer is the script's text to the letter, whatever the tokens' borders."""
    run = Run(model, name).wait()
    assert run.text == SCRIPTS[name].text()
    assert run.end.reason == "stop"


def test_reasoning_is_split_off(model: EngineModel) -> None:
    """Text between the reasoning markers is reasoning, and its tokens are counted."""
    run = Run(model, "think").wait()
    assert (run.reasoning, run.text) == ("Let me think.", "The answer is 42")
    assert 0 < run.end.usage.reasoning < run.end.usage.completion


def test_thinking_can_be_turned_off(model: EngineModel) -> None:
    """Without thinking the template closes the block and the model answers at once."""
    run = Run(model, "think", thinking=False).wait()
    assert (run.reasoning, run.text) == ("", "The answer is 42")


def test_a_template_that_opens_the_block(crafted_family: Callable[[str], Path]) -> None:
    """Reasoning that was opened by the prompt is still reasoning; with thinking off there is none."""
    loaded = engine.load(inspect(crafted_family("qwen_open_think")))
    try:
        run = Run(loaded, "think").wait()
        assert (run.reasoning, run.text) == ("Let me think.", "The answer is 42")
        assert Run(loaded, "think", thinking=False).wait().reasoning == ""
    finally:
        loaded.unload()


@pytest.mark.parametrize("family", ["qwen", "gemma4", "mistral"])
def test_tool_calls_of_each_family(crafted_family: Callable[[str], Path], family: str) -> None:
    """One, two and reasoned calls are parsed; a broken one is text; in each family's own syntax."""
    loaded = engine.load(inspect(crafted_family(family)))
    try:
        one, two, reasoned, broken, unclosed = (
            Run(loaded, script, tools=(WEATHER,)).wait()
            for script in ("tool", "tools", "think_tool", "broken_tool", "unclosed_tool")
        )
    finally:
        loaded.unload()
    assert (one.calls, one.end.reason) == ([PARIS], "tool_calls")
    assert two.calls == [PARIS, TOKYO]
    assert (reasoned.reasoning, reasoned.text, reasoned.calls) == ("I need weather", "Looking up. ", [PARIS])
    assert (broken.calls, broken.end.reason) == ([], "stop")
    assert '{"name": "get_weather", "arguments": {"city": \n' in broken.text
    assert broken.text.endswith("Sorry!")
    assert unclosed.text.startswith("Checking. ")
    assert unclosed.text.endswith('{"name": "get_weather')


def test_one_call_at_a_time_of_several_in_a_block(model: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one block of a model's syntax holds several calls, the first is kept."""
    preparer = model._preparer
    two = [{"name": "a"}, {"name": "b"}]
    twice = OutputFormat(preparer._format.transitions, "<tool_call>", "</tool_call>", lambda _text, _tools: two)
    monkeypatch.setattr(preparer, "_format", twice)
    both = Run(model, "tool", tools=(WEATHER,)).wait()
    one = Run(model, "tool", tools=(WEATHER,), parallel_tool_calls=False).wait()
    assert ([name for name, _ in both.calls], [name for name, _ in one.calls]) == (["a", "b"], ["a"])


def test_control_tokens_have_no_text(model: EngineModel) -> None:
    """A control token that the model makes is not shown; markers and text are."""
    turn = model._tokenizer.wrapper.backend_tokenizer.token_to_id("<|im_start|>")
    forced = SamplingParams(temperature=0, logit_bias=((turn, 1e3),))
    assert turn in model._preparer._hidden
    run = Run(model, "hello", sampling=forced, max_tokens=5).wait()
    assert (run.text, run.end.usage.completion) == ("", 5)


@pytest.mark.parametrize("family", ["qwen", "mistral", "gemma4", "qwen_open_think"])
def test_markers_in_a_users_text_are_text(crafted_family: Callable[[str], Path], family: str) -> None:
    """A user who writes about <think> does not turn the answer into reasoning."""
    loaded = engine.load(inspect(crafted_family(family)))
    try:
        run = Run(loaded, "hello what does <think> mean?").wait()
    finally:
        loaded.unload()
    assert "crafted model." in run.text


def test_tools_for_a_model_that_has_none(model: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused, not ignored."""
    monkeypatch.setattr(model._tokenizer.wrapper, "_tool_call_start", None)
    with pytest.raises(UnsupportedFeature, match="tool calls"):
        Run(model, "hello", tools=(WEATHER,))


def test_one_call_at_a_time(model: EngineModel) -> None:
    """Without parallel tool calls generation ends after the first call."""
    run = Run(model, "tools", tools=(WEATHER,), parallel_tool_calls=False).wait()
    assert (run.calls, run.end.reason) == ([PARIS], "tool_calls")


def test_a_call_without_tools_is_text(model: EngineModel) -> None:
    """A request that offers no tools gets no calls."""
    run = Run(model, "tool").wait()
    assert run.calls == []
    assert run.text == SCRIPTS["tool"].text()


def test_stop_sequences_never_leak(model: EngineModel) -> None:
    """A stop sequence spread over several tokens ends the answer, and no part of it is shown."""
    run = Run(model, "stopword", stop=("STOP",)).wait()
    assert (run.text, run.end.reason) == ("one two ", "stop")
    assert Run(model, "hello").wait().text == SCRIPTS["hello"].text()


@pytest.mark.parametrize("limit", [1, 3, 40])
def test_max_tokens(model: EngineModel, limit: int) -> None:
    """An endless answer is cut after exactly the tokens allowed, and says so."""
    run = Run(model, "loop", max_tokens=limit).wait()
    assert (run.end.reason, run.end.usage.completion) == ("length", limit)


def test_configured_defaults(crafted: Path) -> None:
    """A request gets what the configuration says where it says nothing itself."""
    defaults = GenerationDefaults(max_tokens=5, temperature=30.0)
    loaded = engine.load(inspect(crafted), EngineConfig(generation=defaults))
    try:
        run = Run(loaded, "hello", sampling=SamplingParams(seed=1)).wait()
        assert (run.end.reason, run.end.usage.completion) == ("length", 5)
        assert not SCRIPTS["hello"].text().startswith(run.text)
        own = Run(loaded, "hello", sampling=SamplingParams(temperature=0), max_tokens=100).wait()
        assert own.text == SCRIPTS["hello"].text()
    finally:
        loaded.unload()


def test_cut_inside_reasoning_and_inside_a_call(model: EngineModel) -> None:
    """An answer cut in the middle of anything ends well-formed."""
    assert Run(model, "think", max_tokens=4).wait().end.reason == "length"
    cut = Run(model, "tool", tools=(WEATHER,), max_tokens=6).wait()
    assert (cut.calls, cut.end.reason) == ([], "length")
    assert cut.text.startswith("<tool_call>")


def test_the_context_bounds_an_answer_without_max_tokens(crafted: Path) -> None:
    """Prompt and completion together never exceed the context."""
    loaded = engine.load(inspect(crafted), EngineConfig(context_length=64))
    try:
        usage = Run(loaded, "loop").wait().end.usage
    finally:
        loaded.unload()
    assert usage.prompt + usage.completion == 64


def test_a_prompt_beyond_the_context_is_refused_with_both_counts(model: EngineModel) -> None:
    """Nothing is cut silently."""
    with pytest.raises(ContextLengthExceeded, match=r"4\d\d\d tokens.*holds 4096"):
        model.prepare(GenerationRequest(messages=(Message("user", "hello " + "x" * 4100),)))


def test_ids_outside_the_vocabulary_are_refused(model: EngineModel) -> None:
    """A biased id beyond the vocabulary would make MLX write out of bounds."""
    with pytest.raises(InvalidArgument, match="logit_bias") as caught:
        Run(model, "hello", sampling=SamplingParams(logit_bias=((model.vocab_size, 1.0),)))
    assert caught.value.param == "logit_bias"


MIXED: list[tuple[str, dict[str, Any]]] = [
    ("hello", {"sampling": GREEDY}),
    ("long", {"sampling": SamplingParams(temperature=30.0, seed=7)}),
    ("long", {"sampling": SamplingParams(temperature=30.0, seed=7, top_p=0.9, min_p=0.01), "max_tokens": 50}),
    ("loop", {"sampling": SamplingParams(temperature=30.0, seed=1, top_k=5), "max_tokens": 30}),
    ("loop", {"sampling": SamplingParams(temperature=0, frequency_penalty=2.0), "max_tokens": 30}),
    ("loop", {"sampling": SamplingParams(temperature=0, presence_penalty=2.0), "max_tokens": 30}),
    ("loop", {"sampling": SamplingParams(temperature=0, repetition_penalty=5.0), "max_tokens": 30}),
    ("loop", {"sampling": SamplingParams(temperature=0, logit_bias=((65, 100.0),)), "max_tokens": 5}),
    ("think", {"sampling": GREEDY}),
    ("stopword", {"stop": ("STOP",), "sampling": GREEDY}),
    ("unicode", {"sampling": GREEDY}),
]


def test_alone_or_in_company_the_tokens_are_the_same(model: EngineModel) -> None:
    """Each request of a mixed batch gives exactly what it gives alone, with its own sampler, penalties and stops."""
    alone = [Run(model, script, **options).wait() for script, options in MIXED]
    together = [run.wait() for run in [Run(model, script, **options) for script, options in MIXED]]
    for (script, _), one, other in zip(MIXED, alone, together, strict=True):
        assert (script, one.text, one.reasoning) == (script, other.text, other.reasoning)
        assert one.end.usage == other.end.usage


def test_penalties_and_biases_act(model: EngineModel) -> None:
    """A penalty breaks an endless loop; a bias of 100 brings its token up."""
    looped, penalised = (
        Run(model, "loop", max_tokens=60, sampling=SamplingParams(temperature=0, frequency_penalty=penalty)).wait()
        for penalty in (0.0, 2.0)
    )
    assert looped.text != penalised.text
    biased = Run(model, "loop", max_tokens=4, sampling=SamplingParams(temperature=0, logit_bias=((65, 100.0),)))
    assert "A" in biased.wait().text


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=-1),
        SamplingParams(temperature=float("nan")),
        SamplingParams(top_p=1.5),
        SamplingParams(min_p=-0.1),
        SamplingParams(repetition_penalty=0),
        SamplingParams(frequency_penalty=float("inf")),
        SamplingParams(logit_bias=((1, float("nan")),)),
    ],
)
def test_values_out_of_range_are_refused(model: EngineModel, sampling: SamplingParams) -> None:
    """Whoever calls: numbers that would give garbage are refused by name."""
    with pytest.raises(InvalidArgument):
        Run(model, "hello", sampling=sampling)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(model: EngineModel, limit: int) -> None:
    """No answer at all cannot be asked for."""
    with pytest.raises(InvalidArgument, match="max_tokens"):
        Run(model, "hello", max_tokens=limit)


def test_almost_no_temperature_is_greedy(model: EngineModel) -> None:
    """1 / temperature must not overflow."""
    run = Run(model, "hello", sampling=SamplingParams(temperature=1e-40)).wait()
    assert run.text == SCRIPTS["hello"].text()


def test_seeds(model: EngineModel) -> None:
    """The same seed gives the same tokens; without one, answers differ; scripts win by over 60 logits."""

    def hot(seed: int | None) -> str:
        return Run(model, "long", sampling=SamplingParams(temperature=30.0, seed=seed), max_tokens=60).wait().text

    assert hot(3) == hot(3)
    assert len({hot(None) for _ in range(4)}) > 1


def test_cancel_while_decoding(model: EngineModel) -> None:
    """A cancelled answer ends at once with the reason given, and the engine goes on."""
    run = Run(model, "loop")
    run.events += run.stream.get()
    model.cancel(run.job, Cancelled("enough"))
    assert run.wait().failure.error.code == "cancelled"
    assert run.failure.usage.completion > 0
    assert Run(model, "hello").wait().text == SCRIPTS["hello"].text()


def test_cancel_while_waiting_and_while_prefilling(model: EngineModel) -> None:
    """A request that is cancelled before its first token costs no more than one chunk."""
    model.suspend()
    try:
        waiting = Run(model, "hello " + "x" * 3000)
        model.cancel(waiting.job, Cancelled("never mind"))
        assert waiting.wait().failure.error.code == "cancelled"
    finally:
        model.resume()
    prefilling = Run(model, "hello " + "x" * 3900)
    time.sleep(0.01)
    model.cancel(prefilling.job, Cancelled("never mind"))
    assert prefilling.wait().failure.usage.completion == 0


def test_suspended_means_nothing_is_evaluated(model: EngineModel) -> None:
    """While suspended no token is made; after resume the answer goes on as if nothing had happened."""
    run = Run(model, "long")
    model.suspend()
    before = run.job.completion
    time.sleep(0.1)
    assert run.job.completion == before
    model.resume()
    assert run.wait().text == SCRIPTS["long"].text()


class PanicException(BaseException):
    """What Rust's panics are in Python."""


FAILURES = [RuntimeError("boom"), MemoryError("boom"), SystemExit("boom"), PanicException("boom")]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_processor_fails_its_own_request(
    model: EngineModel, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """An exception inside one request's part of a step ends that request; its neighbours notice nothing."""

    def broken(_params: object, _length: int) -> list[Callable[[object, object], object]]:
        def explode(_tokens: object, _logits: object) -> object:
            raise failure

        return [explode]

    neighbour = Run(model, "long")
    neighbour.events += neighbour.stream.get()
    with monkeypatch.context() as patch:
        patch.setattr("lib_mlx.engine.job.make_processors", broken)
        failing = Run(model, "hello").wait()
    assert (failing.failure.error.code, "boom" in str(failing.failure.error)) == ("internal", True)
    assert neighbour.wait().text == SCRIPTS["long"].text()


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_model_fails_its_batch_and_the_engine_goes_on(
    model: EngineModel, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """An exception inside the network ends the requests of that batch; later ones are answered."""

    def explode(*_: object) -> None:
        raise failure

    cancelled = Run(model, "loop")
    cancelled.events += cancelled.stream.get()
    with monkeypatch.context() as patch:
        patch.setattr(type(model._scheduler._network), "__call__", explode)
        cancelled.job.cancel(Cancelled("enough"))  # ends in the very step that fails
        assert Run(model, "hello").wait().failure.error.code == "internal"
    assert cancelled.wait().failure.error.code == "cancelled"
    assert Run(model, "hello").wait().text == SCRIPTS["hello"].text()


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_command_does_not_end_the_engine(
    model: EngineModel, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """Nor does a request that cannot be started, or a command that nobody waits for."""

    def explode(*_: object) -> None:
        raise failure

    get_worker().post(explode)
    with monkeypatch.context() as patch:
        patch.setattr(model._scheduler, "_insert", explode)
        assert Run(model, "hello").wait().failure.error.code == "internal"
    assert Run(model, "hello").wait().text == SCRIPTS["hello"].text()
