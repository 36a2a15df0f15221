"""Videos: the frames that are taken, as mlx-vlm takes them, what a network makes of them, and files that are none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import FrameBounds, GenerationRequest, Image, Message, PixelBounds, Video
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.films import decode
from lib_mlx.models.loader import load_tokenizer
from lib_mlx.models.media_reader import MediaReader
from lib_mlx.models.vision_network import RowState
from tests.fixtures import GUI
from tests.models.films import film
from tests.models.other_vision import build
from tests.models.vision import PLAIN, network, processor, request_of

if TYPE_CHECKING:
    from pathlib import Path

VIDEO, START, END = 472, 468, 469
MODELS = (PLAIN, GUI / "models/tiny-gui-actor-qwen25vl")


def reader_of(model: Path) -> MediaReader:
    checkpoint = inspect(model)
    return MediaReader(checkpoint, load_tokenizer(checkpoint), network(model).placeholders, PixelBounds())


def frames(content: bytes, bounds: FrameBounds) -> list[Any]:
    return decode(content, bounds, lambda frame, _: frame, "v")


@pytest.mark.parametrize("kind", ["mp4", "avi"])
@pytest.mark.parametrize(
    "bounds", [FrameBounds(2), FrameBounds(4, 6), FrameBounds(0.1), FrameBounds(60, 8), FrameBounds(1, 3)]
)
def test_frames_are_those_of_mlx_vlm(tmp_path: Path, kind: str, bounds: FrameBounds) -> None:
    """Whatever rate is asked for."""
    from mlx_vlm.utils import load_video

    path = tmp_path / f"film.{kind}"
    path.write_bytes(film(kind, count=50))
    expected, _ = load_video(str(path), fps=bounds.fps, max_frames=bounds.most or 32, min_frames=4, frame_factor=2)
    got = np.stack(frames(path.read_bytes(), bounds)).transpose(0, 3, 1, 2)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("model", MODELS, ids=["qwen2", "qwen2.5"])
@pytest.mark.parametrize("step", [10_000, 7])
@pytest.mark.parametrize("size", [(160, 120), (30, 500)])
def test_logits_are_those_of_mlx_vlm(tmp_path: Path, model: Path, step: int, size: tuple[int, int]) -> None:
    """From the file on, at once and in pieces that end inside the video."""
    from mlx_vlm import prepare_inputs

    path = tmp_path / "film.avi"
    path.write_bytes(film("avi", size, count=20))
    text = "A<|vision_start|><|video_pad|><|vision_end|>B"
    vision = network(model)
    inputs = prepare_inputs(processor(model), videos=[str(path)], prompts=text, fps=2.0, max_frames=6)
    embeddings = vision.whole.get_input_embeddings(**inputs)
    tokens = inputs["input_ids"]
    options = {name: value for name, value in embeddings.to_dict().items() if name in {"inputs_embeds", "position_ids"}}
    expected = vision.language(tokens, cache=vision.make_cache(), **options).logits

    reader = reader_of(model)
    media = reader.read(request_of(Video(path.read_bytes()), frame_bounds=FrameBounds(2.0, 6)))
    flat = tokens[0].tolist()
    prompt = [*flat[: flat.index(VIDEO)], VIDEO, *flat[len(flat) - flat[::-1].index(VIDEO) :]]
    numbers, placed, _ = reader.place(prompt, media, ())
    assert placed.tokens == flat
    plan = vision.plan(placed)
    for one in media:
        plan.features[one.digest] = vision.encode("video", one.shape.tokens, reader.inputs(one))
    cache = [*vision.make_cache(), RowState.new(plan)]
    given = mx.array([numbers])
    got = mx.concatenate([vision(given[:, at : at + step], cache) for at in range(0, len(numbers), step)], axis=1)
    assert np.abs(np.array(got - expected)).max() < 1e-4


def test_bounds_of_pixels() -> None:
    """The most of a frame is never exceeded, and makes fewer tokens."""
    reader, content = reader_of(PLAIN), film("avi", (320, 240), count=8)
    whole, small = (
        reader.read(request_of(Video(content), pixel_bounds=PixelBounds(most=most)))[0].shape
        for most in (None, 28 * 28 * 12)
    )
    assert whole.grid is not None
    assert small.grid is not None
    assert small.grid[1] * small.grid[2] <= 4 * 12 < whole.grid[1] * whole.grid[2]


def test_models_that_see_images_alone(tmp_path: Path) -> None:
    """They are shown the frames as images, where the video stands."""
    model = build(tmp_path / "llava", "llava")
    checkpoint = inspect(model)
    reader = MediaReader(checkpoint, load_tokenizer(checkpoint), {"image": 471}, PixelBounds())
    assert reader.kinds == {"image", "video"}
    asked = Message("user", "ab", parts=("a", Video(film("avi", count=20), "here"), "b"))
    request = GenerationRequest(messages=(asked,), frame_bounds=FrameBounds(most=4))
    (shown,) = reader.unrolled(request).messages
    assert [type(part) for part in shown.parts] == [str, Image, Image, Image, Image, str]
    assert len(reader.read(reader.unrolled(request))) == 4
    still = replace(request, messages=(Message("user", "a"),))
    assert reader.unrolled(still) is still


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 9,
        b"\x1aE\xdf\xa3" + b"\0" * 500,
        film("mp4")[:900],
    ],
    ids=["empty", "playlist", "list", "noise", "zeros", "cut"],
)
def test_broken_files(content: bytes) -> None:
    """Each is an error that names the field, also one that names other files."""
    with pytest.raises(InvalidArgument, match=r"no known format|cannot be read|frames, ") as caught:
        frames(content, FrameBounds())
    assert caught.value.param == "v"


def test_nothing_is_written() -> None:
    """What FFmpeg and OpenCV have to say of a broken file does not come to the host's terminal."""
    code = (
        "from lib_mlx.models.films import decode; from lib_mlx.generation import FrameBounds\n"
        "try: decode(b'\\0\\0\\0\\x18ftypmp42' + bytes(999), FrameBounds(), lambda frame, _: frame, 'v')\n"
        "except Exception as error: print(error.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("invalid_argument\n", "")


def test_large_frames() -> None:
    """What has more than so many pixels a side is refused before a frame is made."""
    with pytest.raises(InvalidArgument, match="8224 x 16 pixels"):
        frames(film("avi", (8224, 16), count=2), FrameBounds())
