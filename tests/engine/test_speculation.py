"""Guessed tokens: the answers are those of ordinary decoding, token by token, however they are sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import lib_mlx
from lib_mlx.engine.drafts import DraftModel, PromptLookup
from lib_mlx.engine.speculation import _Course
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InsufficientMemory, InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Constraint, SamplingParams
from lib_mlx.runtime import get_runtime
from tests.checkpoints import build
from tests.checkpoints.other_caches import random_checkpoint
from tests.checkpoints.tiny import build_tiny

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = (
    "abcdefg abcdefg abcdefg abcdefg",
    "Once upon a time there was a king, and once upon a time there was a queen.",
    "x",
)
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"sampling": SamplingParams(temperature=0)},
    {"sampling": SamplingParams(temperature=1.5, seed=7)},
    {"sampling": SamplingParams(temperature=1.0, top_p=0.8, top_k=20, seed=9)},
    {"sampling": SamplingParams(temperature=0, repetition_penalty=1.3)},
    {"sampling": SamplingParams(temperature=0, frequency_penalty=0.7, presence_penalty=0.3)},
    {"sampling": SamplingParams(temperature=0), "constraint": Constraint("regex", "[a-d ]{60}")},
    {"sampling": SamplingParams(temperature=0), "stop": ("aa", "e")},
)
GUESSING: tuple[dict[str, Any], ...] = ({"prompt_lookup": True, "draft_tokens": 5}, {"draft_model_path": "OTHER"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of random weights with the same tokens."""
    folder = tmp_path_factory.mktemp("models")
    return build_tiny(folder / "one", 1), build_tiny(folder / "two", 2)


def answers(model: Path, **config: Any) -> list[tuple[str, int, str]]:
    """All answers of a model: their text, tokens and end."""
    return guessed_answers(model, **config)[0]


def guessed_answers(model: Path, **config: Any) -> tuple[list[tuple[str, int, str]], int, int]:
    """All answers of a model, and how many tokens were guessed for them, and were right."""
    with lib_mlx.load_model(model, **config) as loaded:
        found = [loaded.generate(prompt, max_tokens=60, **options) for prompt in PROMPTS for options in SAMPLINGS]
        guessed, right = guesses(loaded)
    return [(answer.text, answer.usage.completion, answer.finish_reason) for answer in found], guessed, right


def guesses(model: lib_mlx.Model) -> tuple[int, int]:
    """How many tokens were guessed since a model was loaded, and were right."""
    generator = get_runtime().engine(model._handle)._scheduler._batch
    return getattr(generator, "guessed", 0), getattr(generator, "right", 0)


@pytest.fixture(scope="module")
def plain(models: tuple[Path, Path]) -> list[tuple[str, int, str]]:
    """The answers of ordinary decoding."""
    return answers(models[0])


@pytest.mark.parametrize("config", GUESSING)
def test_the_tokens_are_the_same(
    models: tuple[Path, Path], plain: list[tuple[str, int, str]], config: dict[str, Any]
) -> None:
    """Greedy or sampled, with penalties, a grammar or stop sequences."""
    other = {key: str(models[1]) if value == "OTHER" else value for key, value in config.items()}
    found, guessed, right = guessed_answers(models[0], **other)
    assert found == plain
    assert guessed > right


def test_a_draft_that_is_always_right(models: tuple[Path, Path], plain: list[tuple[str, int, str]]) -> None:
    """So they are where the draft is the model itself; every guess of what the model likes best is taken."""
    found, guessed, right = guessed_answers(models[0], draft_model_path=str(models[0]), draft_tokens=3)
    assert found == plain
    assert 0 < right < guessed
    with lib_mlx.load_model(models[0], draft_model_path=str(models[0]), draft_tokens=3) as model:
        answer = model.generate("x", sampling=SamplingParams(temperature=0), max_tokens=60)
        guessed, right = guesses(model)
    assert guessed == right
    assert right > 0.7 * answer.usage.completion


@pytest.mark.model
def test_a_real_model(smollm2: Path) -> None:
    """SmolLM2 says the same with guesses, many of which are right where it repeats itself."""
    prompt = "Repeat this exactly: The quick brown fox jumps over the lazy dog, and then it sleeps by the river."
    said = []
    for config in ({}, {"prompt_lookup": True, "draft_tokens": 8}):
        with lib_mlx.load_model(smollm2, **config) as model:
            said.append(model.generate(prompt, sampling=SamplingParams(temperature=0), max_tokens=64).text)
            right = guesses(model)[1]
    assert said[0] == said[1]
    assert right > 0


def test_what_follows_is_reused(models: tuple[Path, Path]) -> None:
    """A second turn finds the first one's prompt and answer in the prefix cache, and says the same as without."""
    from lib_mlx.generation import Message

    turns = [Message("user", PROMPTS[1]), Message("assistant", "yes"), Message("user", PROMPTS[0])]
    said = []
    for config in ({"prefix_cache_bytes": 0}, {"prompt_lookup": True}):
        with lib_mlx.load_model(models[0], **config) as model:
            model.generate(turns[:1], sampling=SamplingParams(temperature=0), max_tokens=30)
            answer = model.generate(turns, sampling=SamplingParams(temperature=0), max_tokens=30)
            said.append(answer.text)
            assert (answer.usage.cached > 0) == ("prompt_lookup" in config)
    assert said[0] == said[1]


def test_cancelled_in_the_middle(models: tuple[Path, Path]) -> None:
    """What was guessed and not told goes with the request, and the next one is as ever."""
    told: dict[str, Any] = {"sampling": SamplingParams(temperature=0), "constraint": Constraint("regex", "[a-d ]{99}")}
    with lib_mlx.load_model(models[0], prompt_lookup=True) as model:
        expected = model.generate(PROMPTS[0], **told).text
        for count in (1, 2, 5):
            stream = model.stream(PROMPTS[0], **told)
            for _ in range(count):
                next(stream)
            stream.close()  # type: ignore[attr-defined]  # it is a generator
        assert model.generate(PROMPTS[0], **told).text == expected


def test_the_cache_of_the_draft_counts(models: tuple[Path, Path]) -> None:
    """What fits a memory limit beside the cache of one model need not fit beside those of two."""
    with lib_mlx.load_model(models[0]) as model:
        engine = get_runtime().engine(model._handle)
        weights, row = engine.weight_bytes, engine._scheduler._kind.row.of(100)
        draft = get_worker().run(DraftModel, engine._scheduler._network)
        get_worker().run(draft.propose, [1] * 100, 2)
        assert draft.nbytes == 256 * engine._scheduler._kind.row.per_token
    limit = {"memory_limit_bytes": weights + row + row // 2, "prefix_cache_bytes": 0}
    with lib_mlx.load_model(models[0], **limit) as model:
        assert model.generate(PROMPTS[0], max_tokens=2).usage.completion == 2
    limit["memory_limit_bytes"] += weights
    drafted = lib_mlx.load_model(models[0], draft_model_path=str(models[1]), **limit)
    with drafted as model, pytest.raises(InsufficientMemory, match="less memory for it"):
        model.generate(PROMPTS[0], max_tokens=2)


def test_what_cannot_be_guessed_for(models: tuple[Path, Path], crafted: Path, tmp_path: Path) -> None:
    """Both ways at once, a draft of other tokens, a cache that cannot be cut: each is named."""
    with pytest.raises(InvalidArgument, match="two ways"):
        lib_mlx.load_model(models[0], prompt_lookup=True, draft_model_path=str(models[1]))
    strange = build(tmp_path / "gemma4", "gemma4")
    with pytest.raises(InvalidArgument, match="other tokens"):
        lib_mlx.load_model(models[0], draft_model_path=str(strange))
    with pytest.raises(UnsupportedFeature, match="cannot be cut"):
        lib_mlx.load_model(random_checkpoint(tmp_path / "mamba", "mamba2", crafted), prompt_lookup=True)


def test_prompt_lookup() -> None:
    """What followed the longest beginning that has stood before, the last time it did."""
    lookup = PromptLookup()
    assert lookup.propose([1, 2, 3, 4, 1, 2], 3) == [3, 4, 1]
    assert lookup.propose([1, 2, 3, 4, 1, 2, 5, 1, 2], 2) == [5, 1]
    assert lookup.propose([1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 1, 2], 1) == [5]
    assert PromptLookup().propose([1], 3) == []
    assert PromptLookup().propose([1, 2, 3, 4, 5], 3) == []


def test_trust() -> None:
    """Guesses that are right become more; after some that are all wrong there are none for longer and longer."""
    course = _Course(PromptLookup(), 8)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]
    assert len(course.guess(tokens, 2, 100)) == 2
    course.learn(2, 2)
    assert len(course.guess(tokens, 2, 100)) == 4
    assert len(course.guess(tokens, 2, 3)) == 3
    course.learn(3, 1)
    assert len(course.guess(tokens, 2, 100)) == 2
    for pause in (1, 3, 7):
        course.learn(2, 0)
        assert [len(course.guess(tokens, 2, 100)) > 0 for _ in range(pause + 1)] == [False] * pause + [True]
    course.learn(1, 1)
    assert len(course.guess(tokens, 2, 100)) == 2
