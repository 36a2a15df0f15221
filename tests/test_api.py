"""The Python API."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from PIL import Image as Picture

import lib_mlx
from lib_mlx.errors import InvalidArgument, InvalidHandle, LibMlxError, UnsupportedModel
from lib_mlx.runtime import get_runtime
from tests.checkpoints import SCRIPTS
from tests.fixtures import GUI
from tests.models.vision import PLAIN, plain_case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEATHER = lib_mlx.Tool("get_weather", parameters={"type": "object"})


@pytest.fixture(scope="module")
def model(crafted: Path) -> Iterator[lib_mlx.Model]:
    """The crafted model."""
    with lib_mlx.load_model(crafted) as loaded:
        yield loaded


def test_generate(model: lib_mlx.Model) -> None:
    """An answer comes whole, with what it cost."""
    answer = model.generate("think", sampling=lib_mlx.SamplingParams(temperature=0))
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("The answer is 42", "Let me think.", "stop")
    assert answer.usage.completion > answer.usage.reasoning > 0
    assert answer.timings.ttft >= answer.timings.prefill > 0


def test_stream(model: lib_mlx.Model) -> None:
    """The same answer comes in pieces; the last event says how it ended."""
    *deltas, last = model.stream("unicode")
    assert "".join(event.text for event in deltas if isinstance(event, lib_mlx.TextDelta)) == SCRIPTS["unicode"].text()
    assert isinstance(last, lib_mlx.Finished)


def test_forms_and_log_probabilities(model: lib_mlx.Model) -> None:
    """An answer can be held to a form, and tell how likely its tokens were."""
    form = lib_mlx.Constraint("regex", "(yes|no)!")
    deltas = list(model.stream("hello", constraint=form, logprobs=2, thinking=False))
    tokens = [token for event in deltas if isinstance(event, lib_mlx.TextDelta) for token in event.tokens]
    assert b"".join(token.chosen.bytes for token in tokens).decode() in {"yes!", "no!"}
    assert all(1 <= len(token.top) <= 2 for token in tokens)


def test_images(tmp_path: Path) -> None:
    """They are paths, files' contents or Pillow's images; the status tells when the encoder is there."""
    shot = GUI / "screenshots/dialog.png"
    options: Any = {"system": "You are a helpful assistant.", "max_tokens": 10}
    options["sampling"] = lib_mlx.SamplingParams(temperature=0)
    with lib_mlx.load_model(PLAIN) as model:
        assert model.status().model.encoders == "waiting"
        for image in (shot, str(shot), shot.read_bytes(), Picture.open(shot)):
            assert (
                model.generate("Describe the image.", images=[image], **options).text == plain_case("one").facts["text"]
            )
        assert model.status().model.encoders == "loaded"
        with pytest.raises(InvalidArgument, match="cannot be read"):
            model.generate("a", images=[tmp_path / "none.png"])
        with pytest.raises(InvalidArgument, match="into its messages"):
            model.generate([lib_mlx.Message("user", "a")], images=[shot])


def test_a_slow_reader_loses_nothing(model: lib_mlx.Model) -> None:
    """However late the events are read, they are all there, and the last one is `Finished`."""
    events = []
    for event in model.stream("hello"):
        time.sleep(0.01)
        events.append(event)
    assert isinstance(events[-1], lib_mlx.Finished)
    assert "".join(event.text for event in events if isinstance(event, lib_mlx.TextDelta)) == SCRIPTS["hello"].text()


def test_tools_and_conversations(model: lib_mlx.Model) -> None:
    """A call comes back as an object; with its result in the conversation the model answers."""
    messages = [lib_mlx.Message("user", "think_tool")]
    answer = model.generate(messages, tools=[WEATHER], system="Be brief.")
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("get_weather", '{"city": "Paris"}')]
    messages += [
        lib_mlx.Message("assistant", answer.text, tool_calls=answer.tool_calls),
        lib_mlx.Message("tool", "sunny", tool_call_id=answer.tool_calls[0].id),
    ]
    assert model.generate(messages, tools=[WEATHER]).text == SCRIPTS["after"].text()


def test_leaving_a_stream_cancels_it(model: lib_mlx.Model) -> None:
    """Closing the iterator frees the engine."""
    events = model.stream("loop")
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert model.generate("hello").text == SCRIPTS["hello"].text()
    assert get_runtime().engine(model._handle)._scheduler._everyone() == []


def test_stop_and_limits(model: lib_mlx.Model) -> None:
    """Stop sequences and limits are those of the server."""
    assert model.generate("stopword", stop="STOP").text == "one two "
    assert model.generate("loop", max_tokens=3).finish_reason == "length"


def test_serving(model: lib_mlx.Model) -> None:
    """A server lives as long as its block."""
    with model.start_server() as server:
        assert httpx2.get(f"{server.base_url}/health").status_code == 200
        assert model.status().server.status == "running"
    assert model.status().server.status == "stopped"


def test_errors_are_exceptions(model: lib_mlx.Model, tmp_path: Path) -> None:
    """What the C library answers as JSON is raised here."""
    with pytest.raises(LibMlxError, match="no model"):
        lib_mlx.load_model(tmp_path / "nothing")
    with pytest.raises(InvalidArgument, match="prot"):
        model.start_server(prot=1)
    with pytest.raises(InvalidArgument):
        model.generate("hello", sampling=lib_mlx.SamplingParams(logit_bias=((10**6, 1.0),)))


def test_a_block_that_unloads_itself(crafted: Path) -> None:
    """Unloading inside the block is no error at its end; the object is dead afterwards."""
    with lib_mlx.load_model(crafted) as loaded:
        loaded.unload()
    with pytest.raises(InvalidHandle):
        loaded.status()


def test_the_public_names() -> None:
    """Every public name resolves, and no other does."""
    assert all(getattr(lib_mlx, name) is not None for name in lib_mlx.__all__)
    assert set(dir(lib_mlx)) == set(lib_mlx.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lib_mlx.nothing  # noqa: B018 - the access is the test


def test_a_checkpoint_that_brings_code(crafted: Path, tmp_path: Path) -> None:
    """Its code is run only if the host says that it trusts it."""
    copy = tmp_path / "model"
    shutil.copytree(crafted, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_file": "own.py"}))
    mark = tmp_path / "ran"
    code = f"import pathlib\nfrom mlx_lm.models.llama import Model, ModelArgs\npathlib.Path({str(mark)!r}).touch()\n"
    (copy / "own.py").write_text(code)
    with pytest.raises(UnsupportedModel, match="trust_remote_code"):
        lib_mlx.load_model(copy)
    assert not mark.exists()
    with lib_mlx.load_model(copy, trust_remote_code=True) as model:
        assert model.generate("hello").text == SCRIPTS["hello"].text()
    assert mark.exists()
