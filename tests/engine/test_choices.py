"""Several answers to one prompt, and how likely their tokens were."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from lib_mlx.engine.event_stream import ThreadEventStream
from lib_mlx.errors import Cancelled, InvalidArgument
from lib_mlx.generation import Failed, Finished, GenerationRequest, Message, SamplingParams, TextDelta, Tool
from tests.checkpoints import SCRIPTS
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.generation import SampledToken

GREEDY = SamplingParams(temperature=0)
HOT = SamplingParams(temperature=60.0, seed=11)


def choices(model: EngineModel, prompt: str, count: int, sampling: SamplingParams) -> list[tuple[list[int], int]]:
    """Ask for `count` answers; return each one's tokens and how many prompt tokens it found computed."""
    request = GenerationRequest((Message("user", prompt),), sampling=sampling, max_tokens=30)
    streams = [ThreadEventStream() for _ in range(count)]
    jobs = model.submit_choices(model.prepare(request), streams)
    for stream in streams:
        while not isinstance(stream.get()[-1], Finished):
            pass
    return [(job.made, job.cached) for job in jobs]


def test_the_prompt_is_processed_once(model: EngineModel) -> None:
    """All answers but the first find all of the prompt but its last token computed."""
    (_, first), *others = choices(model, "hello " + "q" * 300, 4, GREEDY)
    assert first < 100
    assert all(cached > 300 for _, cached in others)


def test_answers_differ_by_their_seeds(model: EngineModel) -> None:
    """Each answer has random numbers of its own, and the same seed gives the same answers again."""
    once, again = (choices(model, "hello", 4, HOT) for _ in range(2))
    made = [tuple(tokens) for tokens, _ in once]
    assert len(set(made)) == 4
    assert made == [tuple(tokens) for tokens, _ in again]
    assert list(made[0]) == Run(model, "hello", sampling=HOT, max_tokens=30).wait().job.made


def test_the_first_answer_is_cancelled(model: EngineModel) -> None:
    """The others do not wait for it for ever."""
    model.suspend()
    request = GenerationRequest((Message("user", "hello " + "w" * 200),), sampling=GREEDY)
    streams = [ThreadEventStream() for _ in range(3)]
    jobs = model.submit_choices(model.prepare(request), streams)
    model.cancel(jobs[0], Cancelled("enough"))
    model.resume()
    ends = []
    for stream in streams:
        while not isinstance(event := stream.get()[-1], (Finished, Failed)):
            pass
        ends.append(type(event))
    assert ends == [Failed, Finished, Finished]


def sampled(run: Run) -> list[SampledToken]:
    """The tokens of a run's text."""
    return [token for event in run.events if isinstance(event, TextDelta) for token in event.tokens]


@pytest.mark.parametrize("name", ["hello", "unicode", "stopword"])
def test_log_probabilities_cover_the_text(model: EngineModel, name: str) -> None:
    """Joined, the tokens are the text; each is among the likeliest, which come in order."""
    run = Run(model, name, sampling=GREEDY, logprobs=3).wait()
    tokens = sampled(run)
    assert b"".join(token.chosen.bytes for token in tokens).decode() == run.text == SCRIPTS[name].text()
    for token in tokens:
        assert token.chosen.logprob == pytest.approx(0, abs=1e-3)  # the scripts win by far
        assert token.top[0] == token.chosen
        ranks = [entry.logprob for entry in token.top]
        assert len(ranks) == 3
        assert ranks == sorted(ranks, reverse=True)


def test_only_the_answer_has_them(model: EngineModel) -> None:
    """Reasoning, markers and tool calls are no text."""
    run = Run(model, "think", sampling=GREEDY, logprobs=0).wait()
    assert b"".join(token.chosen.bytes for token in sampled(run)).decode().strip() == run.text
    assert all(token.top == () for token in sampled(run))
    called = Run(model, "tool", sampling=GREEDY, logprobs=0, tools=(Tool("get_weather"),)).wait()
    assert called.calls
    assert sampled(called) == []


def test_alone_and_in_company(model: EngineModel) -> None:
    """Rows that report and rows that do not, sampled and greedy, in one batch: the figures are those of each alone."""
    prompts = ["hello", "unicode", "long", "think"]
    options = [{"sampling": HOT, "logprobs": 2}, {"sampling": GREEDY, "logprobs": 5}, {"sampling": GREEDY}, {}]

    def figures(run: Run) -> list[tuple[int, float]]:
        return [(token.chosen.token, round(token.chosen.logprob, 3)) for token in sampled(run.wait())]

    pairs = list(zip(prompts, options, strict=True))
    alone = [figures(Run(model, prompt, max_tokens=40, **more)) for prompt, more in pairs]
    together = [Run(model, prompt, max_tokens=40, **more) for prompt, more in pairs]
    assert [figures(run) for run in together] == alone
    assert [bool(some) for some in alone] == [True, True, False, False]


def test_a_biased_token_is_as_likely_as_it_was_made(model: EngineModel) -> None:
    """Log-probabilities are those that sampling saw, with the bias: two tokens lifted alike are equally likely."""
    bias = ((65, 500.0), (66, 500.0))
    run = Run(model, "hello", sampling=SamplingParams(temperature=0, logit_bias=bias), logprobs=2, max_tokens=2).wait()
    first = sampled(run)[0]
    assert {entry.token for entry in first.top} == {65, 66}
    assert sum(math.exp(entry.logprob) for entry in first.top) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("count", [-1, 10**9])
def test_too_many_are_refused(model: EngineModel, count: int) -> None:
    """More than the vocabulary has is a client's mistake."""
    with pytest.raises(InvalidArgument) as refused:
        Run(model, "hello", logprobs=count)
    assert refused.value.param == "top_logprobs"


def test_another_salt_finds_nothing(model: EngineModel) -> None:
    """What one tenant asked is not computed already for another."""
    prompt = "hello " + "s" * 200
    cached = [Run(model, prompt, cache_salt=salt).wait().end.usage.cached for salt in ("a", "a", "b")]
    assert cached[1] > 200
    assert max(cached[0], cached[2]) < 100
