"""Images in examples: where they may stand, which tokens are learnt, and lines that are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import PixelBounds
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_tokenizer
from lib_mlx.models.media_reader import MediaReader
from lib_mlx.models.upstream_vlm import import_mlx_vlm
from lib_mlx.models.vision_network import image_placeholder
from lib_mlx.training.examples import Example, Examples, read_again, read_examples
from tests.models.vision import PLAIN
from tests.training.colours import png, told, url

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.models.loader import LoadedTokenizer

ANSWER = {"role": "assistant", "content": "red"}


@pytest.fixture(scope="module")
def tokenizer() -> LoadedTokenizer:
    return load_tokenizer(inspect(PLAIN))


@pytest.fixture(scope="module")
def reader(tokenizer: LoadedTokenizer) -> MediaReader:
    import_mlx_vlm(inspect(PLAIN))
    token = image_placeholder(inspect(PLAIN))
    assert token is not None
    return MediaReader(inspect(PLAIN), tokenizer, {"image": token}, PixelBounds())


@pytest.fixture
def read(tmp_path: Path, tokenizer: LoadedTokenizer, reader: MediaReader) -> Callable[..., Examples]:
    """Return a function that reads rows, which lie beside `a.png` of 2 x 2 and `b.png` of 3 x 2 tokens."""
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "b.png").write_bytes(png("red", (84, 56)))

    def call(*rows: Any, sees: bool = True, **values: Any) -> Examples:
        config = told(tmp_path, "rows", PLAIN, list(rows), **values)
        return read_examples(config, tokenizer, int(tokenizer.wrapper.eos_token_id), reader if sees else None)

    return call


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def test_where_images_stand(read: Callable[..., Examples], tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    """In parts as a data URL or a path, or in columns, in their places or before the text: the same example."""
    found = read(
        {"messages": [user({"type": "image_url", "image_url": {"url": url(png("red"))}}, text("colour?")), ANSWER]},
        {"messages": [user({"type": "image_url", "image_url": {"url": "a.png"}}, text("colour?")), ANSWER]},
        {"messages": [user({"type": "image", "image": "a.png"}, text("colour?")), ANSWER]},
        {"messages": [user({"type": "image", "image": str(tmp_path / "a.png")}, text("colour?")), ANSWER]},
        {"messages": [user({"type": "image"}, text("colour?")), ANSWER], "images": [f"file://{tmp_path}/a.png"]},
        {"messages": [{"role": "user", "content": "colour?"}, ANSWER], "images": ["a.png"]},
        {"image": "a.png", "question": "colour?", "answer": "red"},
    ).train
    assert len({(example.tokens, example.spans) for example in found}) == 1
    assert len({span.medium for example in found if example.media for span in example.media.spans}) == 1
    example = found[0]
    assert example.tokens.count(-1) == 4
    (span,) = example.spans
    learnt = tokenizer.wrapper.backend_tokenizer.decode(list(example.tokens[slice(*span)]), skip_special_tokens=False)
    assert learnt == "red<|im_end|>\n"


def test_several_images_and_none(read: Callable[..., Examples], reader: MediaReader) -> None:
    """They keep their order among texts; rows without any go with them; pixels are read again from the line."""
    two, none, null = read(
        {
            "messages": [user(text("x"), {"type": "image"}, text("y"), {"type": "image"}), ANSWER],
            "images": ["b.png", "a.png"],
        },
        {"question": "colour?", "answer": "red"},
        {"image": None, "question": "colour?", "answer": "red"},
    ).train
    assert two.media is not None
    assert [span.stop - span.start for span in two.media.spans] == [6, 4]
    assert not two.media.media
    assert two.line is not None
    assert [medium.digest for medium in read_again(two.line, reader)] == [span.medium for span in two.media.spans]
    assert none == Example(null.tokens, null.spans)


def test_bounds_and_cuts(read: Callable[..., Examples], reader: MediaReader) -> None:
    """Long examples are cut and named; with `train_on_prompts` all is learnt, in the same places."""
    row = {"image": "b.png", "question": "colour?", "answer": "red"}
    found = read(row, train_on_prompts=True, max_tokens=12)
    assert found.cut[0].split(":", 1)[1].startswith("1: ")
    assert found.train[0].spans == ((0, 12),)
    assert len(found.train[0].tokens) == 12


PART = {"type": "image", "image": "a.png"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"image": "none.png", "question": "x", "answer": "y"}, r"none.png cannot be read: No such file"),
        ({"image": ".", "question": "x", "answer": "y"}, r"cannot be read: Is a directory"),
        ({"image": "rows.jsonl", "question": "x", "answer": "y"}, r"rows.jsonl: The image is of no known format"),
        ({"image": "half.png", "question": "x", "answer": "y"}, r"half.png: The image cannot be read"),
        ({"image": "http://host/a.png", "question": "x", "answer": "y"}, r"http://host/a.png is not fetched"),
        ({"image": "data:image/png;base64,!", "question": "x", "answer": "y"}, "The data is not base64"),
        ({"image": 5, "question": "x", "answer": "y"}, "'image' is no path"),
        ({"image": "a.png", "prompt": "x", "completion": "y"}, "images without messages"),
        ({"image": "a.png", "text": "x"}, "images without messages"),
        ({"images": ["a.png"], "messages": [ANSWER]}, "no user's message"),
        ({"images": ["a.png", "b.png"], "messages": [user({"type": "image"}), ANSWER]}, "2 images, of which 1 have"),
        ({"messages": [user({"type": "image"}), ANSWER]}, "fewer images than places"),
        ({"messages": [user({**PART, "size": 3}), ANSWER]}, "unknown key 'size'"),
        ({"messages": [user({"type": "image_url", "image_url": 5}), ANSWER]}, "Invalid value for 'messages.0"),
        ({"messages": [user({"type": "image_url"}), ANSWER]}, "has no image"),
        ({"messages": [user(PART, text("<|image_pad|>")), ANSWER]}, "which stands for images"),
        ({"messages": [user({"type": "video_url", "video_url": {"url": "/a"}}), ANSWER]}, "this is a video"),
        ({"messages": [{"role": "assistant", "content": [PART]}]}, "takes text alone in 'assistant'"),
    ],
)
def test_wrong_lines(read: Callable[..., Examples], tmp_path: Path, row: Any, complaint: str) -> None:
    """The file, the line, the image and what is wrong with it."""
    (tmp_path / "half.png").write_bytes(png("red")[:60])
    with pytest.raises(InvalidArgument, match=rf"rows.jsonl:2: .*{complaint}") as caught:
        read({"text": "fine"}, row)
    assert caught.value.param == "data_path"


def test_images_for_a_model_of_text(read: Callable[..., Examples]) -> None:
    """An error names the line, where it might have been learnt without the image."""
    with pytest.raises(InvalidArgument, match=r"rows.jsonl:1: this model reads no images"):
        read({"messages": [user(PART, text("x")), ANSWER]}, sees=False)


def test_an_image_that_went_away(read: Callable[..., Examples], reader: MediaReader, tmp_path: Path) -> None:
    """When its pixels are needed again and it is gone, the line is named."""
    (example,) = read({"image": "a.png", "question": "x", "answer": "y"}).train
    assert example.line is not None
    (tmp_path / "a.png").unlink()
    with pytest.raises(InvalidArgument, match=r"rows.jsonl:1: .*a.png cannot be read"):
        read_again(example.line, reader)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(InvalidArgument, match=r"rows.jsonl:1 cannot be read any more"):
        read_again(example.line, reader)
