"""Requests with images through the whole engine, with real inference on the fixtures of the PyTorch reference."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as Pictures

from lib_mlx.config import EngineConfig
from lib_mlx.engine import engine
from lib_mlx.engine.event_stream import ThreadEventStream
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import (
    Cancelled,
    ContextLengthExceeded,
    InvalidArgument,
    LibMlxError,
    ShuttingDown,
    UnsupportedFeature,
)
from lib_mlx.generation import (
    Failed,
    Finished,
    GenerationRequest,
    Image,
    Message,
    PixelBounds,
    SamplingParams,
)
from lib_mlx.models import media_reader
from lib_mlx.models.checkpoint import inspect
from tests.fixtures import GUI
from tests.models.vision import PLAIN, plain_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lib_mlx.engine.engine import EngineModel
    from lib_mlx.engine.job import Job
    from lib_mlx.generation import GenerationEvent

SYSTEM = Message("system", "You are a helpful assistant.")


@pytest.fixture(scope="module")
def model() -> Iterator[EngineModel]:
    """tiny-qwen2-vl."""
    loaded = engine.load(inspect(PLAIN))
    yield loaded
    loaded.unload()


@pytest.fixture
def fresh() -> Iterator[EngineModel]:
    """The same, with nothing kept of earlier requests."""
    loaded = engine.load(inspect(PLAIN))
    yield loaded
    loaded.unload()


def shot(name: str) -> Image:
    return Image((GUI / f"screenshots/{name}.png").read_bytes())


def noise(side: int, seed: int = 0) -> Image:
    """A picture that is like no other."""
    import numpy as np

    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    out = io.BytesIO()
    Pictures.fromarray(pixels).save(out, "PNG")
    return Image(out.getvalue())


def user(*parts: str | Image) -> Message:
    return Message("user", "".join(part for part in parts if isinstance(part, str)), parts=parts)


def case_request(name: str, **options: Any) -> GenerationRequest:
    """The request whose prompt is that of a case of the fixture."""
    facts = plain_case(name).facts
    images = [Image((GUI / image).read_bytes()) for image in facts["images"]]
    return request(SYSTEM, user(*images, facts["question"]), **{"max_tokens": 10, **options})


def request(*messages: Message, **options: Any) -> GenerationRequest:
    return GenerationRequest(messages=messages, sampling=SamplingParams(temperature=0), **options)


class Run:
    """One request under way."""

    def __init__(self, model: EngineModel, wanted: GenerationRequest) -> None:
        self.stream = ThreadEventStream()
        self.prepared = model.prepare(wanted)
        self.job: Job = model.submit(self.prepared, self.stream)

    def wait(self) -> GenerationEvent:
        """Return the terminal event."""
        while True:
            for event in self.stream.get():
                if isinstance(event, (Finished, Failed)):
                    return event


def finished(run: Run) -> Finished:
    event = run.wait()
    assert isinstance(event, Finished), event
    return event


@pytest.mark.parametrize("name", ["one", "two", "none"])
def test_answers_are_those_of_the_reference(model: EngineModel, name: str) -> None:
    """Prompt and greedy tokens, from the files of the images on."""
    run = Run(model, case_request(name))
    finished(run)
    assert run.job.made == plain_case(name).facts["new_tokens"]
    tokens = run.prepared.media.tokens if run.prepared.media else run.prepared.prompt
    assert tokens == plain_case(name).tokens


def test_images_and_text_side_by_side(model: EngineModel) -> None:
    """Every request has its own answer, whatever runs beside it."""
    names = ["one", "none", "two", "two", "none", "one"]
    runs = [Run(model, case_request(name)) for name in names]
    for name, run in zip(names, runs, strict=True):
        finished(run)
        assert run.job.made == plain_case(name).facts["new_tokens"]


def test_without_a_prefix_cache() -> None:
    """Images are read all the same."""
    loaded = engine.load(inspect(PLAIN), EngineConfig(prefix_cache_bytes=0))
    try:
        names = ("two", "none", "two")
        runs = [Run(loaded, case_request(name)) for name in names]
        for name, run in zip(names, runs, strict=True):
            finished(run)
            assert run.job.made == plain_case(name).facts["new_tokens"]
    finally:
        loaded.unload()


def test_a_second_turn_over_the_same_image(fresh: EngineModel) -> None:
    """It computes only what is new, and answers as it does from scratch; another image is another prompt."""
    first = Run(fresh, case_request("one"))
    finished(first)
    turns = [SYSTEM, user(shot("dialog"), "Describe the image."), Message("assistant", "A window."), user("And more?")]
    again = Run(fresh, request(*turns, max_tokens=10))
    end = finished(again)
    assert end.usage.cached >= len(first.prepared.prompt) - 1
    features = fresh._encoder
    assert features is not None
    assert features.features.misses == 1  # the tower has run once
    alone = engine.load(inspect(PLAIN), EngineConfig(prefix_cache_bytes=0, image_cache_bytes=0))
    try:
        scratch = Run(alone, request(*turns, max_tokens=10))
        finished(scratch)
        assert scratch.job.made == again.job.made
    finally:
        alone.unload()
    other = Pictures.open(GUI / "screenshots/dialog.png").convert("RGB")
    other.putpixel((0, 0), (1, 2, 3))
    out = io.BytesIO()
    other.save(out, "PNG")
    changed = Run(fresh, request(SYSTEM, user(Image(out.getvalue()), "Describe the image."), max_tokens=10))
    before_the_image = first.prepared.prompt.index(next(token for token in first.prepared.prompt if token < 0))
    assert finished(changed).usage.cached == before_the_image


def test_features_are_kept_when_prompts_are_not() -> None:
    """The same image in another conversation is not encoded again; with no room for features it is."""
    for kept, misses in ((None, 1), (0, 2)):
        loaded = engine.load(inspect(PLAIN), EngineConfig(prefix_cache_bytes=0, image_cache_bytes=kept))
        try:
            for text in ("What is it?", "Where is it?"):
                finished(Run(loaded, request(user(text, shot("dialog")), max_tokens=2)))
            encoder = loaded._encoder
            assert encoder is not None
            assert (encoder.features.misses, encoder.features.nbytes > 0) == (misses, kept is None)
        finally:
            loaded.unload()


def test_many_that_wait_for_the_same_image(fresh: EngineModel) -> None:
    """However many there are, one encoding serves them all."""
    prepared = fresh.prepare(request(user("What is it?", shot("dialog")), max_tokens=1))
    streams = [ThreadEventStream() for _ in range(1100)]
    for stream in streams:
        fresh.submit(prepared, stream)
    for stream in streams:
        got: list[GenerationEvent] = []
        while not got or not isinstance(got[-1], Finished | Failed):
            got += stream.get()
        assert isinstance(got[-1], Finished), got[-1]


def test_salts() -> None:
    """What is kept of an image is of no use to others, who could tell by it what somebody asked about."""
    loaded = engine.load(inspect(PLAIN), EngineConfig())
    try:
        for salt, misses in (("a", 1), ("a", 1), ("b", 2), ("", 3)):
            finished(Run(loaded, request(user("What is it?", shot("dialog")), max_tokens=2, cache_salt=salt)))
            assert loaded._encoder is not None
            assert loaded._encoder.features.misses == misses
    finally:
        loaded.unload()


def test_limits_count_what_is_kept_of_images() -> None:
    """An eighth of what a limit leaves for caches is for features at most."""
    loaded = engine.load(inspect(PLAIN), EngineConfig(memory_limit_bytes=20_000_000))
    try:
        assert loaded._encoder is not None
        assert 2_000_000 < loaded._encoder.features.max_bytes <= 2_500_000
        finished(Run(loaded, case_request("one")))
    finally:
        loaded.unload()


def test_order_and_places(model: EngineModel) -> None:
    """Images stand where they were put among the text."""
    run = Run(model, request(user("a", shot("icon"), "b", shot("twins"), "c"), max_tokens=1))
    finished(run)
    text = model.decode(run.prepared.media.tokens if run.prepared.media else [])
    pad = "<|image_pad|>"
    image = f"<|vision_start|>{pad}<|vision_end|>"
    for count in (6, 135):
        text = text.replace(pad * count, pad, 1)
    assert f"a{image}b{image}c<|im_end|>" in text


def test_a_long_encoding_holds_up_no_stream(model: EngineModel) -> None:
    """Text flows on between the layers of the encoder."""
    text = Run(model, request(user("Go on."), max_tokens=400))
    while not text.job.made:
        time.sleep(0.001)
    image = Run(model, request(user(noise(700, 10), "?"), max_tokens=1))
    encoder = model._encoder
    assert encoder is not None
    while not encoder.active:
        time.sleep(0.0005)
    before = len(text.job.made)
    while encoder.active:
        time.sleep(0.0005)
    assert len(text.job.made) - before >= 2
    finished(text)
    finished(image)


def until_active(model: EngineModel) -> None:
    encoder = model._encoder
    assert encoder is not None
    while not encoder.active:
        time.sleep(0.0005)


def test_cancelling_while_an_image_is_encoded(model: EngineModel) -> None:
    """The request ends between two layers, and the next one is served."""
    run = Run(model, request(user(noise(700, 11), "?"), max_tokens=1))
    until_active(model)
    model.cancel(run.job, Cancelled("Enough."))
    event = run.wait()
    assert isinstance(event, Failed)
    assert event.error.code == "cancelled"
    after = Run(model, case_request("one"))
    finished(after)
    assert after.job.made == plain_case("one").facts["new_tokens"]


def test_unloading_while_an_image_is_encoded() -> None:
    """The requests end, those that wait too, and the memory is given back."""
    import mlx.core as mx

    before = get_worker().run(mx.get_active_memory)
    loaded = engine.load(inspect(PLAIN))
    runs = [Run(loaded, request(user(noise(700, seed), "?"), max_tokens=1)) for seed in range(3)]
    until_active(loaded)
    loaded.unload()
    for run in runs:
        event = run.wait()
        assert isinstance(event, Failed)
        assert isinstance(event.error, ShuttingDown)
    del loaded, runs, run
    assert get_worker().run(mx.get_active_memory) <= before + 1_000_000


def test_suspending_while_an_image_is_encoded(model: EngineModel) -> None:
    """Nothing is evaluated until it goes on; then the answer comes."""
    run = Run(model, request(user(noise(700, 12), "?"), max_tokens=1))
    until_active(model)
    model.suspend()
    encoder = model._encoder
    assert encoder is not None
    time.sleep(0.05)
    assert not encoder.active
    assert not run.job.done
    model.resume()
    finished(run)


def test_bounds_of_pixels() -> None:
    """An image's own go before the request's, those before the model's; each changes how many tokens it takes."""
    loaded = engine.load(inspect(PLAIN), EngineConfig(max_pixels=28 * 28 * 40))
    try:

        def tokens(own: PixelBounds = PixelBounds(), asked: PixelBounds = PixelBounds()) -> int:  # noqa: B008
            picture = Image(shot("dialog").source, own)
            prepared = loaded.prepare(request(user(picture), max_tokens=1, pixel_bounds=asked))
            return sum(token < 0 for token in prepared.prompt)

        assert tokens() <= 40
        assert 40 < tokens(asked=PixelBounds(most=28 * 28 * 80)) <= 80
        assert tokens(PixelBounds(most=28 * 28 * 10), PixelBounds(most=28 * 28 * 80)) <= 10
        assert tokens(asked=PixelBounds(28 * 28 * 300, 28 * 28 * 400)) >= 300
        with pytest.raises(InvalidArgument, match="at least"):
            tokens(asked=PixelBounds(least=28 * 28 * 50))
    finally:
        loaded.unload()


def test_more_pixels_than_can_be_used(model: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before they take memory and time, at the first image that is too much, by its name."""
    small = shot("icon").source

    def refused(error: type[LibMlxError], *sizes: PixelBounds) -> str | None:
        images = [Image(small, bounds, f"images.{at}") for at, bounds in enumerate(sizes)]
        begun = time.perf_counter()
        with pytest.raises(error) as caught:
            model.prepare(request(user(*images), max_tokens=1))
        assert time.perf_counter() - begun < 5
        return caught.value.param

    assert refused(InvalidArgument, PixelBounds(10**12, 10**13)) == "images.0"
    large = PixelBounds(28 * 28 * 1500, 28 * 28 * 2000)
    assert refused(ContextLengthExceeded, *[large] * 50) == "images.2"
    monkeypatch.setattr(media_reader, "_MOST_PIXELS", 10**6)
    with pytest.raises(InvalidArgument, match="up to this one"):
        model.count_prompt(request(user(*[Image(small, large)])))


def test_counting_more_than_the_context(model: EngineModel) -> None:
    """How many tokens a prompt has is told even if they are too many."""
    large = Image(shot("icon").source, PixelBounds(28 * 28 * 5000, 28 * 28 * 6000))
    assert model.count_prompt(request(user(large))) > model.context_length


def png(change: Callable[[Any], Any]) -> bytes:
    out = io.BytesIO()
    change(Pictures.new("RGB", (30, 30))).save(out, "PNG")
    return out.getvalue()


def claiming(side: int) -> bytes:
    """A small file that says to be large."""
    content = png(lambda picture: picture)
    header = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "format"),
        (b"GIF89a", "read|format"),
        (b"%PDF-1.4 ...", "format"),
        (png(lambda picture: picture.resize((600, 600)))[:-400], "read"),
        (claiming(60_000), "more than"),
        (claiming(11_000), "more than"),
        (png(lambda picture: picture.resize((1000, 2))), "200 times"),
    ],
    ids=["empty", "cut off", "pdf", "damaged", "bomb", "smaller bomb", "strip"],
)
def test_broken_images(model: EngineModel, content: bytes, message: str) -> None:
    """Each is refused with the field's name."""
    with pytest.raises(InvalidArgument, match=message) as caught:
        model.prepare(request(user(Image(content, param="messages.0.content.1"))))
    assert caught.value.param == "messages.0.content.1"


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK", "I;16"])
def test_kinds_of_pixels(model: EngineModel, mode: str) -> None:
    """Whatever a file holds becomes three colours."""
    out = io.BytesIO()
    Pictures.new(mode, (60, 60)).save(out, "JPEG" if mode == "CMYK" else "PNG")
    finished(Run(model, request(user(Image(out.getvalue())), max_tokens=1)))


def test_a_text_that_pretends_to_be_an_image(model: EngineModel) -> None:
    """What stands for an image cannot be written beside one."""
    with pytest.raises(InvalidArgument, match="image_pad"):
        model.prepare(request(user(shot("icon"), "<|image_pad|>")))


def test_text_models_refuse_images(crafted: Any) -> None:
    """By the name of the field."""
    loaded = engine.load(inspect(crafted))
    try:
        with pytest.raises(UnsupportedFeature, match="reads text") as caught:
            loaded.prepare(request(user(Image(b"", param="here"))))
        assert caught.value.param == "here"
        assert (loaded.encoders, "vision" in loaded.capabilities) == (None, False)
    finally:
        loaded.unload()


def test_encoders_wait_for_the_first_image(fresh: EngineModel) -> None:
    """The status tells so."""
    assert (fresh.encoders, "vision" in fresh.capabilities) == ("waiting", True)
    finished(Run(fresh, case_request("none")))
    assert fresh.encoders == "waiting"
    finished(Run(fresh, case_request("one")))
    assert fresh.encoders == "loaded"


def test_repetition_penalties_know_what_images_stand_for(model: EngineModel) -> None:
    """They look up tokens, not the numbers of pixels."""
    sampling = SamplingParams(temperature=0, repetition_penalty=1.3)
    wanted = GenerationRequest(messages=(user(shot("icon"), "?"),), sampling=sampling, max_tokens=5)
    finished(Run(model, wanted))
