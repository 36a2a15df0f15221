"""Answers that have begun, and what a prompt counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lib_mlx.engine import engine
from lib_mlx.errors import UnsupportedFeature
from lib_mlx.generation import Constraint, GenerationRequest, Message, SamplingParams
from lib_mlx.models.checkpoint import inspect
from tests.checkpoints import SCRIPTS
from tests.engine.conftest import Run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel

GREEDY = SamplingParams(temperature=0)


@pytest.mark.parametrize("name", ["hello", "long", "unicode"])
def test_the_answer_goes_on_from_the_text(model: EngineModel, name: str) -> None:
    """It is not repeated, and white space after it is kept: here it ends with a token that starts a script."""
    run = Run(model, "stopword", prefill=f"So<|go:{name}|>", sampling=GREEDY).wait()
    assert run.text == SCRIPTS[name].text()


def test_reasoning_in_the_text_goes_on(model: EngineModel) -> None:
    """A text that opens reasoning and does not close it is gone on with as reasoning."""
    run = Run(model, "stopword", prefill="<think>So<|go:hello|>", sampling=GREEDY).wait()
    assert (run.reasoning, run.text) == (SCRIPTS["hello"].text(), "")


@pytest.mark.parametrize(
    ("family", "turn"),
    [
        ("qwen", "<|im_start|>assistant\nDear"),
        ("qwen_open_think", "<|im_start|>assistant\nDear"),
        ("gemma4", "<|turn>model\nDear"),
        ("mistral", "[/INST]Dear"),
    ],
)
def test_the_prompt_is_the_templates(crafted_family: Callable[[str], Path], family: str, turn: str) -> None:
    """It ends with the assistant's turn as the template writes it, cut off behind the text."""
    loaded = engine.load(inspect(crafted_family(family)))
    try:
        request = GenerationRequest((Message("system", "Be brief."), Message("user", "Dear Sir")), prefill="Dear")
        prompt = loaded.prepare(request).prompt
        text = loaded._tokenizer.wrapper.decode(prompt)
        assert loaded.count_prompt(request) == len(prompt)
    finally:
        loaded.unload()
    assert text.endswith(turn)
    assert "Be brief." in text


def test_a_template_that_changes_the_text(crafted: Path, tmp_path: Path) -> None:
    """What it would not keep is refused; the rest is gone on with."""
    for file in crafted.iterdir():
        content = file.read_bytes()
        if file.name == "tokenizer_config.json":
            content = content.replace(b"text_of(message.content)", b"(text_of(message.content) | trim)")
        (tmp_path / file.name).write_bytes(content)
    trimming = engine.load(inspect(tmp_path))
    try:
        with pytest.raises(UnsupportedFeature, match="changes the text"):
            Run(trimming, "hello", prefill="  So")
        assert Run(trimming, "hello", prefill="So<|go:long|>", sampling=GREEDY).wait().text == SCRIPTS["long"].text()
    finally:
        trimming.unload()


def test_contradictions(model: EngineModel) -> None:
    """An answer that has begun is not preceded by reasoning, nor held to a form that it does not begin with."""
    with pytest.raises(UnsupportedFeature, match="begun") as caught:
        Run(model, "hello", prefill="So", thinking=True)
    assert caught.value.param == "thinking"
    with pytest.raises(UnsupportedFeature, match="begun") as caught:
        Run(model, "hello", prefill="So", constraint=Constraint("regex", "a"))
    assert caught.value.param == "response_format"


def test_counting(model: EngineModel) -> None:
    """A prompt is counted even if it is too long to be answered."""
    few, many = (
        model.count_prompt(GenerationRequest((Message("user", "x" * length),))) for length in (1, 1 + 2 * 4096)
    )
    assert many - few == 2 * 4096


def test_the_stop_sequence_is_reported(model: EngineModel) -> None:
    """The one that ended the answer stands in its last event, if one did."""
    assert Run(model, "stopword", stop=("zero", "STOP"), sampling=GREEDY).wait().end.stop == "STOP"
    assert Run(model, "stopword", stop=("zero",), sampling=GREEDY).wait().end.stop is None
