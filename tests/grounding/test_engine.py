"""A GUI-Actor in the engine: its requests among others', cancelled, suspended and unloaded at every stage."""

from __future__ import annotations

import io
import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import lib_mlx
from lib_mlx.engine.event_stream import ThreadEventStream
from lib_mlx.engine.grounding import GroundingJob, PreparedGrounding
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import (
    Cancelled,
    ContextLengthExceeded,
    CorruptModel,
    InvalidArgument,
    LibMlxError,
    ShuttingDown,
    TargetNotFound,
    UnsupportedFeature,
)
from lib_mlx.generation import (
    Constraint,
    Failed,
    Finished,
    GenerationRequest,
    GroundingOptions,
    Image,
    Message,
    PixelBounds,
    TextDelta,
    Tool,
)
from lib_mlx.runtime import get_runtime
from tests.grounding.conftest import FIXTURES, MODELS, TRAINED, cases, picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lib_mlx.engine.engine import EngineModel


@pytest.fixture(scope="module", params=MODELS)
def any_actor(request: pytest.FixtureRequest) -> Iterator[tuple[str, lib_mlx.Model]]:
    """Each of the two, loaded as users load it."""
    with lib_mlx.load_model(FIXTURES / "models" / request.param) as model:
        yield request.param, model


@pytest.fixture(scope="module")
def actor() -> Iterator[lib_mlx.Model]:
    """The trained one."""
    with lib_mlx.load_model(FIXTURES / "models" / TRAINED) as model:
        yield model


def asked(name: str, **options: Any) -> GenerationRequest:
    """A case as a request."""
    case = cases(TRAINED)[name]
    image = Image((FIXTURES / case["file"]).read_bytes(), PixelBounds(case["min_pixels"], case["max_pixels"]))
    return GenerationRequest((Message("user", case["instruction"], parts=(image, case["instruction"])),), **options)


def engine(model: lib_mlx.Model) -> EngineModel:
    return get_runtime().engine(model._handle)


def events(stream: ThreadEventStream) -> list[Any]:
    """All events of a request."""
    got: list[Any] = []
    while not got or not isinstance(got[-1], Finished | Failed):
        got += stream.get()
    return got


def test_parity(any_actor: tuple[str, lib_mlx.Model]) -> None:
    """Through the engine, points are PyTorch's to 1e-5 for every case."""
    name, model = any_actor
    for case in cases(name).values():
        found = model.ground(
            FIXTURES / case["file"],
            case["instruction"],
            min_pixels=case["min_pixels"],
            max_pixels=case["max_pixels"],
        )
        assert (found.columns, found.rows) == (case["n_width"], case["n_height"])
        assert [found.width, found.height] == case["original_wh"]
        points = [(point.x, point.y) for point in found.pointers[0].points[:5]]
        assert np.abs(np.array(points) - case["topk_points"]).max() < 1e-5
        (x, y), (left, top, right, bottom) = found.pixel(found.point), case["target_box"]
        assert found.text == f"pyautogui.click({x}, {y})"
        assert (left <= x <= right and top <= y <= bottom) == case["top1_in_target"]


def test_what_a_picture_may_be(actor: lib_mlx.Model) -> None:
    """A path, a file's content, a picture of Pillow's; loaded for once or already."""
    case = cases(TRAINED)["dialog"]
    path = FIXTURES / case["file"]
    pixels = picture(case)
    found = [actor.ground(given, case["instruction"]) for given in (path, str(path), path.read_bytes(), pixels)]
    found.append(lib_mlx.ground(pixels, case["instruction"], model=FIXTURES / "models" / TRAINED))
    found.append(lib_mlx.ground(pixels, case["instruction"], model=actor))
    assert len({one.point for one in found}) == 1
    with pytest.raises(InvalidArgument, match="cannot be read"):
        actor.ground("/nowhere/picture.png", "Click it")
    with pytest.raises(InvalidArgument, match="no known format"):
        actor.ground(b"picture", "Click it")


def test_its_own_action(actor: lib_mlx.Model) -> None:
    """Free, the model says the action itself; without a pointer in it that is an error, and the engine goes on."""
    case = cases(TRAINED)["settings"]
    found = actor.ground(picture(case), case["instruction"], free=True)
    assert [found.point.x, found.point.y] == pytest.approx(case["free"]["point"], abs=1e-5)
    with lib_mlx.load_model(FIXTURES / "models" / MODELS[1]) as random:
        with pytest.raises(TargetNotFound, match="pointed at nothing"):
            random.ground(picture(case), case["instruction"], free=True, max_tokens=8)
        assert random.ground(picture(case), case["instruction"]).pointers


def test_usage(actor: lib_mlx.Model) -> None:
    """Tokens of the prompt are counted with the picture's, tokens of the answer if the model made it up."""
    known = engine(actor)
    for free in (False, True):
        request = asked("dialog", grounding=GroundingOptions(free=free))
        stream = ThreadEventStream()
        known.submit(known.prepare(request), stream)
        text, finished = events(stream)
        assert isinstance(text, TextDelta)
        assert finished.usage.prompt == known.count_prompt(request) == cases(TRAINED)["dialog"]["n_tokens"] - 12 * free
        assert finished.usage.completion == (12 if free else 0)
        assert finished.timings.prefill > 0


def test_the_same_picture_again(actor: lib_mlx.Model) -> None:
    """It is not encoded again for another instruction."""
    case = cases(TRAINED)["phone"]
    encoder = engine(actor)._encoder
    assert encoder is not None
    actor.ground(FIXTURES / case["file"], case["instruction"])
    before = encoder.features.hits, encoder.features.misses
    actor.ground(FIXTURES / case["file"], "Click the red button")
    assert (encoder.features.hits, encoder.features.misses) == (before[0] + 1, before[1])


def test_beside_text(actor: lib_mlx.Model, crafted: Path) -> None:
    """Streams of another model and several groundings at once: all come out as they do alone."""
    names = [*cases(TRAINED)] * 2
    known, outcomes = engine(actor), {}
    with lib_mlx.load_model(crafted) as other:
        alone = other.generate("long", max_tokens=150).text
        streams = [(name, ThreadEventStream()) for name in names]
        for name, stream in streams:
            known.submit(known.prepare(asked(name)), stream)
        assert other.generate("long", max_tokens=150).text == alone
        for index, (name, stream) in enumerate(streams):
            outcomes[index] = (name, events(stream)[-1])
    for name, finished in outcomes.values():
        point = finished.grounded.grounding.point
        assert [point.x, point.y] == pytest.approx(cases(TRAINED)[name]["topk_points"][0], abs=1e-5)


def test_cancelled_while_they_wait(actor: lib_mlx.Model) -> None:
    """Requests that are cancelled end at once, wherever they are among others, which go on."""
    known = engine(actor)
    known.suspend()
    streams = [ThreadEventStream() for _ in range(6)]
    jobs = [known.submit(known.prepare(asked("toolbar")), stream) for stream in streams]
    for job in jobs[::2]:
        known.cancel(job, Cancelled("It is not wanted."))
    assert all(isinstance(events(stream)[-1], Failed) for stream in streams[::2])
    known.resume()
    assert all(isinstance(events(stream)[-1], Finished) for stream in streams[1::2])
    assert known.waiting == 0


def test_cancelled_under_way(actor: lib_mlx.Model) -> None:
    """A request whose prompt is being processed ends before its next piece."""
    known = engine(actor)
    actor.ground(FIXTURES / cases(TRAINED)["settings"]["file"], "Click it")  # its picture is known from now on
    assert known._pointing is not None
    lane, stream = known._pointing.lane, ThreadEventStream()
    prepared = known.prepare(asked("settings", grounding=GroundingOptions(free=True)))
    assert isinstance(prepared, PreparedGrounding)
    job = GroundingJob(prepared, stream)

    def begin() -> bool:
        lane.add(job)
        begun = [lane.step() for _ in range(3)]
        job.cancel(Cancelled("It is not wanted."))
        return begun == [[], [], []] and lane._steps is not None

    assert get_worker().run(begin)
    (end,) = events(stream)
    assert isinstance(end.error, Cancelled)
    assert end.usage.completion == 1
    assert actor.ground(FIXTURES / "screenshots/icon.png", "Click it").pointers


def test_suspended(actor: lib_mlx.Model) -> None:
    """Nothing is evaluated meanwhile; requests that wait go on afterwards, or can be cancelled at once."""
    known = engine(actor)
    known.suspend()
    streams = [ThreadEventStream() for _ in range(2)]
    jobs = [known.submit(known.prepare(asked("dialog")), stream) for stream in streams]
    known.cancel(jobs[1], Cancelled("It is not wanted."))
    assert isinstance(events(streams[1])[-1], Failed)
    threading.Timer(0.1, known.resume).start()
    assert isinstance(events(streams[0])[-1], Finished)


def test_unloaded_meanwhile() -> None:
    """Requests end with an error, wherever they are."""
    model = lib_mlx.load_model(FIXTURES / "models" / TRAINED)
    known = engine(model)
    streams = [ThreadEventStream() for _ in range(6)]
    for stream in streams:
        known.submit(known.prepare(asked("toolbar")), stream)
    model.unload()
    ends = [events(stream)[-1] for stream in streams]
    assert all(isinstance(end, Finished) or isinstance(end.error, ShuttingDown) for end in ends)


IMAGE = Image((FIXTURES / "screenshots/icon.png").read_bytes())
ASK = Message("user", "Click it", parts=(IMAGE, "Click it"))


@pytest.mark.parametrize(
    ("request_", "kind", "why"),
    [
        (GenerationRequest((Message("user", "Click it"),)), InvalidArgument, "0 pictures"),
        (GenerationRequest((Message("user", "", parts=(IMAGE, IMAGE)),)), InvalidArgument, "2 pictures"),
        (GenerationRequest((ASK, Message("assistant", "No."))), InvalidArgument, "2 messages"),
        (GenerationRequest((Message("user", "", parts=(IMAGE,)),)), InvalidArgument, "no instruction"),
        (GenerationRequest((ASK,), tools=(Tool("f"),)), UnsupportedFeature, "tools"),
        (GenerationRequest((ASK,), stop=("a",)), UnsupportedFeature, "stop"),
        (GenerationRequest((ASK,), logprobs=1), UnsupportedFeature, "logprobs"),
        (GenerationRequest((ASK,), constraint=Constraint("json_object")), UnsupportedFeature, "response_format"),
        (GenerationRequest((ASK,), prompt="Once"), None, ""),
    ],
)
def test_what_is_refused(
    actor: lib_mlx.Model, request_: GenerationRequest, kind: type[LibMlxError] | None, why: str
) -> None:
    """What is no picture with an instruction; but text alone can be continued, as by any model."""
    known = engine(actor)
    if kind is None:
        stream = ThreadEventStream()
        known.submit(known.prepare(GenerationRequest(prompt="Once", max_tokens=3)), stream)
        assert isinstance(events(stream)[-1], Finished)
        return
    with pytest.raises(kind, match=why):
        known.prepare(request_)


def test_too_large(actor: lib_mlx.Model) -> None:
    """A picture of more patches than the context holds is refused, unless it may be made smaller."""
    from PIL import Image as Pictures

    out = io.BytesIO()
    Pictures.new("RGB", (2000, 2000)).save(out, "PNG")
    with pytest.raises(ContextLengthExceeded, match="max_pixels"):
        actor.ground(out.getvalue(), "Click it")
    assert actor.ground(out.getvalue(), "Click it", max_pixels=200_000).columns == 15


def test_other_models() -> None:
    """They say that they do not point."""
    with lib_mlx.load_model(FIXTURES / "models/tiny-qwen2-vl") as plain:
        assert "grounding" not in engine(plain).capabilities
        with pytest.raises(UnsupportedFeature, match="does not point"):
            plain.ground(FIXTURES / "screenshots/icon.png", "Click it")


def test_what_it_can(actor: lib_mlx.Model) -> None:
    """It is told among the capabilities."""
    assert "grounding" in engine(actor).capabilities


def test_without_a_head(tmp_path: Path) -> None:
    """A checkpoint that calls itself a GUI-Actor and has no head is damaged."""
    source = FIXTURES / "models/tiny-qwen2-vl"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    actor = json.loads((FIXTURES / "models" / TRAINED / "config.json").read_text())
    ids = {key: value for key, value in actor.items() if key.startswith("pointer_")}
    config |= {"architectures": ["Qwen2VLForConditionalGenerationWithPointer"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptModel, match="pointer_pad_token_id"):
        lib_mlx.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | ids))
    with pytest.raises(CorruptModel, match="lacks <"):
        lib_mlx.load_model(tmp_path)


def test_a_verifier(actor: lib_mlx.Model) -> None:
    """It is shown each candidate and ranks them by PyTorch's probabilities."""
    from lib_mlx.grounding.result import Grounding, Point, Pointer
    from lib_mlx.pointing import verified

    known = json.loads((FIXTURES / "expected/tiny-qwen2-vl.json").read_text())["verifier"]
    case = cases(TRAINED)["settings"]
    points = tuple(Point(*one["point"], score=1.0) for one in reversed(known))
    found = Grounding("pyautogui.click(495, 6)", (Pointer(points, (1.0,)),), *case["original_wh"], 1, 1)
    with lib_mlx.load_model(FIXTURES / "models/tiny-qwen2-vl") as plain:
        ranked = verified(found, Image((FIXTURES / case["file"]).read_bytes()), case["instruction"], plain.stream)
        assert ranked.text == "pyautogui.click(150, 133)"
        best = ranked.pointers[0].points
        assert [point.verified for point in best] == pytest.approx([one["score"] for one in known], abs=1e-5)
        assert [(point.x, point.y) for point in best] == [tuple(one["point"]) for one in known]
        checked = actor.ground(FIXTURES / case["file"], case["instruction"], verifier=plain)
        assert checked.point.verified is not None
