"""examples/python/microphone.py, with a file in place of a microphone and a real model behind the server."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import lib_mlx
from tests.abi.conftest import ROOT
from tests.models.hearing import RATE, build, tone, written

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = ROOT / "examples/python/microphone.py"


def room(seconds: float, level: float = 0.002) -> Any:
    """What a microphone hears when nobody speaks."""
    return np.random.default_rng(1).normal(0, level, round(seconds * RATE)).astype(np.float32)


def recording(level: float = 0.002) -> Any:
    """A second of nothing, an utterance with a breath in it, quiet, another one."""
    parts = [room(1, level), tone(0.6), room(0.2, level), tone(0.4), room(1.4, level), tone(0.5, 200), room(1, level)]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def microphone() -> Any:
    spec = importlib.util.spec_from_file_location("microphone", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["microphone"] = module
    spec.loader.exec_module(module)
    return module


def cut(microphone: Any, samples: Any) -> list[Any]:
    frames = (samples * 32767).astype(np.int16)
    pieces = [frames[at : at + microphone.FRAME] for at in range(0, len(frames), microphone.FRAME)]
    return list(microphone.utterances(pieces))


@pytest.mark.parametrize("level", [0.0002, 0.002, 0.02])
def test_utterances(microphone: Any, level: float) -> None:
    """They begin a little before they are heard and end with half a second of quiet, in rooms of any loudness."""
    first, second = cut(microphone, recording(level))
    assert abs(first.begin - 0.8) < 0.05
    assert abs(first.end - 2.7) < 0.05
    assert abs(second.begin - 3.4) < 0.05
    assert abs(second.end - 4.6) < 0.05


def test_a_room_where_nobody_speaks(microphone: Any) -> None:
    """Nothing is cut from it, nor from a click."""
    assert cut(microphone, room(5)) == []
    assert cut(microphone, np.concatenate([room(1), tone(0.03), room(1)])) == []


def test_who_does_not_stop(microphone: Any) -> None:
    """An utterance is never longer than a model hears at once, and one that goes on at the end is not lost."""
    found = cut(microphone, np.concatenate([room(1), tone(40, 100)]))
    assert len(found) == 2
    assert max(one.end - one.begin for one in found) <= 28
    assert found[-1].end == 41


def test_it_answers_each_utterance(tmp_path: Path) -> None:
    """Through a server, with a stream each."""
    speech = tmp_path / "speech.wav"
    speech.write_bytes(written(recording()))
    with lib_mlx.load_model(build(tmp_path / "tiny")) as model, model.start_server() as server:
        program = [sys.executable, PROGRAM, f"{server.base_url}/v1", "What?", "--source", speech]
        done = subprocess.run(program, capture_output=True, timeout=60, check=False, cwd=tmp_path)
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\d\.\d)\d-(\d\.\d)\d s: .", text, re.MULTILINE) == [("0.8", "2.7"), ("3.4", "4.6")], text
