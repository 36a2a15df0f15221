"""Examples: what is read, which tokens are learnt, and lines that are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.errors import InvalidArgument
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_tokenizer
from lib_mlx.training.examples import Example, Examples, read_examples
from tests.training.conftest import write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.training.config import TrainConfig

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}


@pytest.fixture
def read(config: Callable[..., TrainConfig], tmp_path: Path, tiny: Path) -> Callable[..., Examples]:
    """Return a function that reads rows."""
    tokenizer = load_tokenizer(inspect(tiny))

    def call(*rows: Any, **values: Any) -> Examples:
        path = write_jsonl(tmp_path / "rows.jsonl", list(rows))
        told = config(**{"data_path": str(path), "validation_share": 0.0, **values})
        return read_examples(told, tokenizer, int(tokenizer.wrapper.eos_token_id))

    return call


@pytest.fixture
def learnt(tiny: Path) -> Callable[[Example], list[str]]:
    """Return a function that gives the texts of an example that are learnt."""
    backend = load_tokenizer(inspect(tiny)).wrapper.backend_tokenizer

    def texts(example: Example) -> list[str]:
        return [
            backend.decode(list(example.tokens[begin:end]), skip_special_tokens=False) for begin, end in example.spans
        ]

    return texts


def test_the_assistants_part_is_learnt(read: Callable[..., Examples], learnt: Callable[[Example], list[str]]) -> None:
    """Of conversations each answer with its end is learnt, of texts all, of both all if so told."""
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "red"},
        {"role": "assistant", "content": "alpha"},
        {"role": "user", "content": "green"},
        {"role": "assistant", "content": "bravo"},
    ]
    conversation, pair, text = read(
        {"messages": turns}, {"prompt": "red", "completion": "alpha"}, {"text": "all of it"}
    ).train
    answers = learnt(conversation)
    assert len(answers) == 2
    assert answers[0].startswith("alpha")
    assert answers[1].startswith("bravo")
    assert not any("green" in answer or "brief" in answer for answer in answers)
    assert learnt(pair)[0].startswith("alpha")
    assert learnt(text)[0].startswith("all of it")
    whole = read({"messages": turns}, train_on_prompts=True).train[0]
    assert whole.spans == ((0, len(whole.tokens)),)


def test_tool_calls_are_learnt(read: Callable[..., Examples], learnt: Callable[[Example], list[str]]) -> None:
    """A call stands in what is learnt as the model would write it, the tool's definition in what is not."""
    turns = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    (example,) = read({"messages": turns, "tools": [TOOL]}).train
    (answer,) = learnt(example)
    assert "<tool_call>" in answer
    assert '"city": "Paris"' in answer
    assert "properties" not in answer


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("not JSON", "rows.jsonl:2: no JSON object"),
        ({"instruction": "x", "output": "y"}, "rows.jsonl:2: neither text.*, but 'instruction', 'output'"),
        ({"prompt": "x"}, "rows.jsonl:2: neither text"),
        ({"prompt": "x", "completion": 5}, "rows.jsonl:2: 'completion' is no text"),
        ({"text": "x", "more": 1}, "rows.jsonl:2: unknown key 'more'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "rows.jsonl:2: nothing is left to learn"),
        ({"messages": [{"role": "king", "content": "x"}]}, r"rows.jsonl:2: Invalid value for 'messages.0.role'"),
        ({"messages": [], "tools": []}, "rows.jsonl:2: Invalid value for 'messages'"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": 1}, "rows.jsonl:2: unknown key 'temperature'"),
    ],
)
def test_wrong_lines(read: Callable[..., Examples], row: Any, complaint: str) -> None:
    """The file, the line and what is wrong with it."""
    with pytest.raises(InvalidArgument, match=complaint):
        read({"text": "fine"}, row)


def test_files(read: Callable[..., Examples], config: Callable[..., TrainConfig], tiny: Path, tmp_path: Path) -> None:
    """A folder has its own validation, a file gives a share for it; empty lines are nothing, missing files an error."""
    tokenizer = load_tokenizer(inspect(tiny))
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"text": "a"}, {"text": "b"}])
    (folder / "valid.jsonl").write_text('\n{"text": "c"}\n\n')
    found = read_examples(config(data_path=str(folder)), tokenizer, 0)
    assert (len(found.train), len(found.valid)) == (2, 1)
    shared = read(*({"text": str(number)} for number in range(20)), validation_share=0.25)
    assert (len(shared.train), len(shared.valid)) == (15, 5)
    for missing in (tmp_path / "no.jsonl", tmp_path):
        with pytest.raises(InvalidArgument, match="cannot be read"):
            read_examples(config(data_path=str(missing)), tokenizer, 0)
    (folder / "train.jsonl").write_text('{"text": \n')
    with pytest.raises(InvalidArgument, match=r"train.jsonl:1: not JSON"):
        read_examples(config(data_path=str(folder)), tokenizer, 0)


def test_files_of_windows(
    read: Callable[..., Examples], config: Callable[..., TrainConfig], tiny: Path, tmp_path: Path
) -> None:
    """A byte order mark and CRLF are nothing; what is not UTF-8 is told so."""
    tokenizer, file = load_tokenizer(inspect(tiny)), tmp_path / "windows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    found = read_examples(config(data_path=str(file)), tokenizer, int(tokenizer.wrapper.eos_token_id)).train
    assert found == read({"text": "a"}, {"text": "b"}).train
    for encoding in ("cp1252", "utf-16"):
        file.write_bytes('{"text": "Möwe"}\n'.encode(encoding))
        with pytest.raises(InvalidArgument, match=r"windows.jsonl:1: not UTF-8"):
            read_examples(config(data_path=str(file)), tokenizer, 0)


def test_long_examples_are_cut_and_named(read: Callable[..., Examples]) -> None:
    """What is beyond the limit goes; where nothing is left to learn, that is an error."""
    found = read({"text": "x" * 50}, max_tokens=10)
    assert len(found.train[0].tokens) == 10
    assert found.cut[0].endswith("rows.jsonl:1: 51 tokens, cut to 10")
    with pytest.raises(InvalidArgument, match="nothing is left"):
        read({"prompt": "x" * 50, "completion": "y"}, max_tokens=10)
