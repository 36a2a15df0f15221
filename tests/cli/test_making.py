"""`lib-mlx train`, `fuse`, `quantize`, `convert`, `eval`: models from models, as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from lib_mlx.cli import app
from lib_mlx.errors import InvalidArgument
from tests.checkpoints.tiny import build_tiny
from tests.commands import ROOT, run_command
from tests.models.vision import PLAIN
from tests.training.colours import rows
from tests.training.conftest import CODES, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights."""
    return build_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command in the test's folder."""
    return partial(run_command, folder=tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Examples."""
    return write_jsonl(
        tmp_path / "data.jsonl", [{"prompt": key, "completion": code} for key, code in CODES.items()] * 4
    )


def test_train_and_fuse(
    run: Callable[..., subprocess.CompletedProcess[str]], tiny: Path, data: Path, tmp_path: Path
) -> None:
    """Progress and figures on stderr, the folder on stdout; the adapter goes into a model that runs."""
    done = run(
        "train",
        tiny,
        "--data",
        data,
        "--output",
        "out",
        "--steps",
        8,
        "--rank",
        4,
        "--max-tokens",
        27,
        "--learning-rate",
        0.05,
    )
    assert done.stdout.strip() == "out"
    assert re.search(
        r"step 8 of 8  loss \d+\.\d{3}  validation \d+\.\d{3}  \d+ tokens/s  \d+ MB  0 s left", done.stderr
    )
    assert "cut to 27" in done.stderr
    assert "done after 8 steps" in done.stderr
    assert (tmp_path / "out" / "loss.svg").is_file()
    fused = run("fuse", tiny, "out", "fused", "--quiet").stdout.strip()
    assert (tmp_path / fused / "model.safetensors").is_file()
    asked = ("red", "-n", 4, "-t", 0)
    adapted = run("run", tiny, *asked, "--adapter", "out").stdout
    assert adapted == run("run", fused, *asked).stdout
    assert adapted != run("run", tiny, *asked).stdout


def test_train_and_fuse_a_vision_model(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """From images in the size that is told; a missing one is named with its line."""
    given = rows(tmp_path)
    data = write_jsonl(tmp_path / "images.jsonl", given)
    train = ("train", PLAIN, "--data", data, "--output", "out", "--steps", 2, "--max-pixels", 3136)
    assert "done after 2 steps" in run(*train).stderr
    fused = run("fuse", PLAIN, "out", "fused", "--quiet").stdout.strip()
    answer = run("run", fused, "What is this?", "--image", tmp_path / given[0]["image"], "-n", 2)
    assert answer.returncode == 0
    (tmp_path / given[3]["image"]).unlink()
    failed = run(*train, code=1).stderr
    assert f"images.jsonl:4: {tmp_path / given[3]['image']} cannot be read" in failed
    assert "Traceback" not in failed


def test_ctrl_c_saves(tiny: Path, data: Path, tmp_path: Path) -> None:
    """The first Ctrl-C ends it with what was learnt, from where the same command goes on."""
    command = [sys.executable, "-m", "lib_mlx", "train", tiny, "--data", data, "--output", "out", "--steps", "4000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as training:
        assert training.stderr is not None
        training.stderr.readline()
        training.send_signal(signal.SIGINT)
        rest = training.stderr.read()
        assert training.wait(30) == 130
    assert "interrupted after" in rest
    assert "The same command goes on." in rest
    reached = int(re.findall(r"interrupted after (\d+) steps", rest)[0])
    assert len((tmp_path / "out" / "loss.csv").read_text().splitlines()) == reached + 1
    assert (tmp_path / "out" / "adapters.safetensors").is_file()


def test_quantize_and_measure(run: Callable[..., subprocess.CompletedProcess[str]], tiny: Path, tmp_path: Path) -> None:
    """Sizes before and after, then what it has cost: as a table, and as JSON."""
    done = run("quantize", tiny, "small")
    assert re.search(r"[\d.]+ MB became [\d.]+ MB", done.stderr)
    assert done.stdout.strip() == str(tmp_path / "small")
    run("convert", tiny, "half", "--dtype", "bfloat16", "--quiet")
    text = tmp_path / "text.txt"
    text.write_text("A text to be predicted. " * 10)
    table = run("eval", "kl", "small", "half", "--reference", tiny, "--text", text).stdout.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["small", "half", str(tiny)]
    told = json.loads(run("eval", "perplexity", "small", tiny, "--text", text, "--json").stdout)
    assert set(told) == {"small", str(tiny)}
    assert all(found["perplexity"] > 1 for found in told.values())


def test_what_is_wrong(run: Callable[..., subprocess.CompletedProcess[str]], tiny: Path, tmp_path: Path) -> None:
    """A wrong line, a wrong option and a place that is taken are errors with a fix, not tracebacks."""
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    failed = run("train", tiny, "--data", "bad.jsonl", "--output", "out", code=1)
    assert "bad.jsonl:1: neither text" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "method" in run("train", tiny, "--data", "bad.jsonl", "--output", "out", "--method", "magic", code=1).stderr
    for option in ("steps", "batch-size", "rank", "patience", "validate-every", "layers"):
        none = run("train", tiny, "--data", "bad.jsonl", "--output", "out", f"--{option}", 0, code=1).stderr
        assert f"Invalid value for '{option.replace('-', '_')}'" in none
    (tmp_path / "taken").mkdir()
    assert "taken exists already" in run("quantize", tiny, "taken", code=1).stderr
    assert "contradict" not in run("quantize", tiny, "new", "--bits", 7, code=1).stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(
            ("train", name)
            for name in ("--steps", "--layers", "--rank", "--batch-size", "--learning-rate", "--patience")
        ),
        *(("quantize", name) for name in ("--bits", "--group-size", "--samples")),
    ],
)
def test_nothing_is_told_as_0(tiny: Path, data: Path, tmp_path: Path, command: str, option: str) -> None:
    """An option of 0 is refused by its name, not taken for one that was left out."""
    rest = ["--data", str(data), "--output", str(tmp_path / "out")] if command == "train" else [str(tmp_path / "out")]
    with pytest.raises(InvalidArgument) as raised:
        app([command, str(tiny), *rest, option, "0"], standalone_mode=False)
    assert raised.value.param == option.strip("-").replace("-", "_")
