"""Conversions: each type and mode loads and predicts nearly as before; whole or not at all, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lib_mlx.config import parse_config
from lib_mlx.conversion.config import ConvertConfig
from lib_mlx.conversion.conversion import Converted, convert
from lib_mlx.errors import InvalidArgument, LoadCancelled, UnsupportedFeature
from lib_mlx.evaluation.prediction import divergences
from lib_mlx.models import writing
from tests.checkpoints.tiny import build_tiny
from tests.fixtures import GUI
from tests.models.gguf_files import write_gguf

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
TEXT = "".join(f"The {number}th line of a text that says nothing at all.\n" for number in range(40))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights."""
    return build_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Callable[..., Converted]:
    """Return a function that converts the tiny model into the test's folder."""

    def call(**values: Any) -> Converted:
        told = {"model_path": str(tiny), "output_path": str(tmp_path / "out"), **values}
        return convert(parse_config(ConvertConfig, told))

    return call


@pytest.mark.parametrize(
    ("chosen", "largest", "limit"),
    [
        ({"bits": 8}, 0.32, 0.001),
        ({"bits": 6, "group_size": 32}, 0.34, 0.01),
        ({"bits": 4}, 0.2, 0.15),
        ({"bits": 3}, 0.18, 1.0),
        ({"bits": 2}, 0.12, 5.0),
        ({"mode": "mxfp4"}, 0.2, 0.5),
        ({"mode": "nvfp4"}, 0.2, 0.3),
        ({"mode": "mxfp8"}, 0.32, 0.05),
        ({"recipe": "mixed_4_6"}, 0.3, 0.15),
        ({"dtype": "bfloat16"}, 0.51, 0.001),
        ({"bits": 4, "dtype": "float16"}, 0.2, 0.15),
    ],
)
def test_what_is_kept(
    make: Callable[..., Converted], tiny: Path, chosen: dict[str, Any], largest: float, limit: float
) -> None:
    """The fewer bits the smaller the file and the farther the predictions; transformers' name for it is there, too."""
    made = make(**chosen)
    assert made.bytes_after < largest * made.bytes_before
    config = json.loads((made.path / "config.json").read_text())
    assert ("quantization" in config) == (set(chosen) != {"dtype"})
    assert config.get("quantization") == config.get("quantization_config")
    assert (made.path / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["out"]
    assert 0 <= divergences([str(made.path)], str(tiny), TEXT)[0].mean_kl < limit


@pytest.mark.parametrize("method", ["gptq", "awq", "dwq"])
def test_learned(make: Callable[..., Converted], tiny: Path, tmp_path: Path, method: str) -> None:
    """Fitted to the text, it is no worse than without on that text."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    plain = make(bits=2, output_path=str(tmp_path / "plain"))
    fitted = make(bits=2, learned=method, text_path=str(text), samples=16)
    before, after = (divergences([str(made.path)], str(tiny), TEXT)[0].mean_kl for made in (plain, fitted))
    assert after < 1.05 * before


def test_there_and_back(make: Callable[..., Converted], tiny: Path, tmp_path: Path) -> None:
    """What is dequantised predicts as the quantised did; what is quantised already can be quantised anew."""
    small = make(bits=4, output_path=str(tmp_path / "small"))
    back = make(model_path=str(small.path), dequantize=True, output_path=str(tmp_path / "back"))
    assert "quantization" not in json.loads((back.path / "config.json").read_text())
    assert divergences([str(back.path)], str(small.path), TEXT)[0].mean_kl < 1e-5
    again = make(model_path=str(small.path), bits=8, output_path=str(tmp_path / "again"))
    assert divergences([str(again.path)], str(small.path), TEXT)[0].mean_kl < 0.01


def test_gguf(make: Callable[..., Converted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file becomes a model directory."""
    monkeypatch.setenv("LIB_MLX_DATA_DIR", str(tmp_path / "data"))
    made = make(model_path=str(write_gguf(tmp_path / "model.gguf").path))
    assert json.loads((made.path / "config.json").read_text())["model_type"] == "llama"
    assert list(made.path.glob("*.safetensors"))


def test_parts(make: Callable[..., Converted], tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model is split, with an index; all weights are in one of the parts, as they were."""
    _split(monkeypatch, 200_000)
    made = make()
    index = json.loads((made.path / "model.safetensors.index.json").read_text())
    parts = sorted(path.name for path in made.path.glob("*.safetensors"))
    assert len(parts) > 2
    assert set(index["weight_map"].values()) == set(parts)
    found = {name: array for part in parts for name, array in load_file(made.path / part).items()}
    original = load_file(tiny / "model.safetensors")
    assert set(found) == set(original)
    assert all(np.array_equal(found[name], original[name]) for name in found)


def test_an_interrupted_conversion_is_gone_on_with(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are written are not written again; nothing appears before the end; other orders begin anew."""
    _split(monkeypatch, 30_000)
    config = parse_config(ConvertConfig, {"model_path": str(tiny), "output_path": str(tmp_path / "out"), "bits": 8})
    seen: list[int] = []
    with pytest.raises(LoadCancelled):
        convert(config, lambda _stage, done, _total: seen.append(done), lambda: len(seen) == 1)
    assert not (tmp_path / "out").exists()
    (half,) = (tmp_path / ".out.partial").glob("*.safetensors")
    before = half.stat().st_mtime_ns, half.stat().st_ino
    made = convert(config)
    kept = made.path / half.name
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(LoadCancelled):
        convert(config.model_copy(update={"output_path": str(tmp_path / "two")}), cancelled=_second_time())
    other = convert(config.model_copy(update={"output_path": str(tmp_path / "two"), "bits": 4}))
    assert other.bytes_after < made.bytes_after


RUN = """
import json, sys
from lib_mlx.config import parse_config
from lib_mlx.conversion.config import ConvertConfig
from lib_mlx.conversion.conversion import convert
from lib_mlx.models import writing
writing.PART_BYTES = 100_000

def wait(stage, done, total):
    print(stage, done, flush=True)
    sys.stdin.read()

convert(parse_config(ConvertConfig, json.loads(sys.argv[1])), wait)
"""


def test_a_killed_conversion_is_gone_on_with(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one to the same place is refused while it lives; after the kill, the result is that of a whole one."""
    told = {"model_path": str(tiny), "output_path": str(tmp_path / "out"), "bits": 8}
    command = [sys.executable, "-c", RUN, json.dumps(told)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("write")
        with pytest.raises(InvalidArgument, match="being written by another process"):
            convert(parse_config(ConvertConfig, told))
        process.send_signal(signal.SIGKILL)
    _split(monkeypatch, 100_000)
    made = convert(parse_config(ConvertConfig, told))
    whole = convert(parse_config(ConvertConfig, {**told, "output_path": str(tmp_path / "whole")}))
    names = sorted(path.name for path in whole.path.iterdir())
    assert sorted(path.name for path in made.path.iterdir()) == names
    assert all((made.path / name).read_bytes() == (whole.path / name).read_bytes() for name in names)


def test_models_with_encoders(make: Callable[..., Converted], tmp_path: Path) -> None:
    """None loses its eyes: of a GUI-Actor the language model is quantised, others are refused by name."""
    actor, plain = GUI / "models/tiny-gui-actor-qwen2vl", GUI / "models/tiny-qwen2-vl"
    steps: list[tuple[str, int, int]] = []
    made = make(model_path=str(actor), bits=8)
    before, after = (
        {name: array for file in path.glob("*.safetensors") for name, array in load_file(file).items()}
        for path in (actor, made.path)
    )
    kept = [name for name in before if not name.startswith(("model.", "lm_head."))]
    assert len(kept) > 20
    assert all(np.array_equal(before[name], after[name]) for name in kept)
    assert made.bytes_after < made.bytes_before
    for told in ({"bits": 3}, {"dtype": "float16"}, {"bits": 8, "group_size": 64}):
        with pytest.raises(UnsupportedFeature, match="GUI-Actor"):
            make(model_path=str(actor), output_path=str(tmp_path / "other"), **told)
    for told in ({}, {"bits": 4}, {"dtype": "float16"}):
        with pytest.raises(UnsupportedFeature, match="has encoders"):
            make(model_path=str(plain), output_path=str(tmp_path / "other"), **told)
    told = {"model_path": str(actor), "output_path": str(tmp_path / "other"), "bits": 4}
    with pytest.raises(LoadCancelled):
        convert(parse_config(ConvertConfig, told), cancelled=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    convert(parse_config(ConvertConfig, told), lambda *told: steps.append(told))
    assert [(stage, done == total > 0) for stage, done, total in steps] == [("write", True)]


def test_what_is_wrong(make: Callable[..., Converted], tmp_path: Path) -> None:
    """A place that is taken, options that contradict each other, a text that is missing or too short: each is named."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(InvalidArgument, match="taken exists already"):
        make(output_path=str(tmp_path / "taken"))
    with pytest.raises(InvalidArgument, match="cannot be a folder") as raised:
        make(output_path="/proc/self/no/folder")
    assert raised.value.param == "output_path"
    for chosen, complaint in (
        ({"dequantize": True, "bits": 4}, "contradict"),
        ({"recipe": "mixed_4_6", "bits": 4}, "recipe"),
        ({"mode": "mxfp4", "bits": 4}, "mxfp4"),
        ({"learned": "gptq"}, "text_path"),
        ({"text_path": "x"}, "learned"),
        ({"bits": 7}, "bits"),
        ({"learned": "gptq", "text_path": "x", "bits": 5}, "gptq"),
    ):
        with pytest.raises(InvalidArgument, match=complaint):
            make(**chosen)
    (tmp_path / "short.txt").write_text("a b c d")
    with pytest.raises(InvalidArgument, match="8 at least"):
        make(learned="gptq", text_path=str(tmp_path / "short.txt"))
    with pytest.raises(InvalidArgument, match="cannot be read"):
        make(learned="gptq", text_path=str(tmp_path / "none.txt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.txt", "taken"]


def test_an_architecture_without_a_recipe(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is said by name."""
    monkeypatch.setattr("lib_mlx.conversion.quantization.mixed_quant_predicate_builder", _refuse)
    told = {"model_path": str(tiny), "output_path": str(tmp_path / "out"), "recipe": "mixed_3_4"}
    with pytest.raises(UnsupportedFeature, match="mixed_3_4"):
        convert(parse_config(ConvertConfig, told))


def _refuse(*_arguments: object) -> None:
    raise ValueError("no such keys")


def _second_time() -> Callable[[], bool]:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) == 2

    return cancelled


def _split(monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    """Have small files, so that there are several."""
    monkeypatch.setattr(writing, "PART_BYTES", part_bytes)
