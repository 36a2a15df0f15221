"""Detection, prompts and answers."""

from __future__ import annotations

import json

import pytest

from lib_mlx.errors import CorruptModel, InvalidArgument, UnsupportedModel
from lib_mlx.grounding.interface import POINTER, Interface, answer_text, is_pointer_model, tensor_files
from lib_mlx.grounding.pointer_head import load_head
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_tokenizer
from tests.grounding.conftest import FIXTURES, MODELS, TRAINED, cases, loaded


def test_detection() -> None:
    """By the architecture's name, or by the head's tensors where that is missing."""
    for name, expected in ((MODELS[0], True), (MODELS[1], True), ("tiny-qwen2-vl", False)):
        path = FIXTURES / "models" / name
        config = json.loads((path / "config.json").read_text())
        assert is_pointer_model(config) is expected
        assert is_pointer_model({}, tensor_files(path)) is expected


@pytest.mark.parametrize("model", MODELS)
def test_prompts(model: str) -> None:
    """They are the published pipeline's, each backbone with its own system prompt."""
    interface = loaded(model).interface
    for case in cases(model).values():
        assert interface.prompt(case["instruction"], free=False) == case["prompt"]
        assert case["prompt"].startswith(interface.prompt(case["instruction"], free=True))
        assert interface.system == case["system"]


@pytest.mark.parametrize("text", ["", "  ", "a <|pointer_pad|> b", "<|im_end|>"])
def test_instructions_that_are_refused(text: str) -> None:
    """None at all, and those that would be taken for the prompt's own marks."""
    with pytest.raises(InvalidArgument) as caught:
        loaded(TRAINED).interface.prompt(text, free=False)
    assert caught.value.param == "messages"


def test_answers() -> None:
    """Pointers become pixels, in order; marks go; what else was said stays."""
    assert answer_text(None, [(3, 4)]) == "pyautogui.click(3, 4)"
    head = "<|im_start|>assistant<|recipient|>os\n"
    drag = f"{head}pyautogui.moveTo({POINTER})\npyautogui.dragTo({POINTER})<|diff_marker|>"
    assert answer_text(drag, [(1, 2), (3, 4)]) == "pyautogui.moveTo(1, 2)\npyautogui.dragTo(3, 4)"
    assert answer_text("I see nothing<|im_end|>", []) == "I see nothing"


def test_checkpoints_that_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Another architecture, missing ids, a missing head."""
    path = FIXTURES / "models" / TRAINED
    checkpoint = inspect(path)
    tokenizer = load_tokenizer(checkpoint)
    with pytest.raises(UnsupportedModel, match="llama"):
        Interface.of({**checkpoint.config, "model_type": "llama"}, tokenizer)
    with pytest.raises(CorruptModel, match="pointer_pad_token_id"):
        Interface.of({**checkpoint.config, "pointer_pad_token_id": None}, tokenizer)
    with pytest.raises(CorruptModel, match="pointer head"):
        load_head({}, path)
