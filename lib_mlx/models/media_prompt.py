"""Prompts with images: from pictures to what stands for them among the tokens. No MLX; any thread.

Each token of an image becomes a number made of the pixels' digest and its place in the image. Numbers are negative, so
that they are no tokens, and equal exactly where the same pixels stand: prompts that share them share their caches.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import CorruptModel, InvalidArgument, LibMlxError
from lib_mlx.generation import Image, Message, PixelBounds
from lib_mlx.models import upstream_vlm
from lib_mlx.models.chat_template import render_prompt
from lib_mlx.models.image_size import smart_resize
from lib_mlx.models.pictures import decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image as Pixels

    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer

    Inputs = Mapping[str, NDArray[Any]]

_KNOWN_SHAPES = 4096  # images of which it is remembered how many tokens they take
_PROBE = Image(b"")
_TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as it enters the model."""

    digest: str
    pixels: Pixels = field(repr=False)
    bounds: PixelBounds
    shape: Shape


@dataclass(frozen=True)
class Shape:
    """What of an image a prompt depends on."""

    tokens: tuple[int, ...]
    """What stands for it in the prompt, as the tokenizer has it."""
    grid: tuple[int, int, int] | None = None
    """Its patches in time, height and width, if the model counts so."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring image tokens of a prompt, and where their features are in those of the image."""

    start: int
    stop: int
    image: str
    """The image's digest."""
    first: int = 0
    """The feature of the first token."""


@dataclass(frozen=True, eq=False)
class PromptMedia:
    """The images of one prompt."""

    tokens: list[int]
    """The whole prompt as the tokenizer has it."""
    image_token: int
    """Stands for a piece of an image in it."""
    spans: tuple[Span, ...]
    pictures: Mapping[str, Picture]
    """By digest."""
    grids: tuple[tuple[int, int, int], ...]
    """Of each image in the prompt, in order; empty if the model has none."""


class MediaReader:
    """Reads the images of one model's requests.

    Args:
        checkpoint: for its processor, which is loaded when it is first needed.
        tokenizer: the checkpoint's.
        image_token: stands for a piece of an image.
        bounds: of images that have none of their own.
    """

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: LoadedTokenizer, image_token: int | None, bounds: PixelBounds
    ) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self.image_token = -1 if image_token is None else image_token
        self._bounds = bounds
        self._lock = threading.Lock()
        self._processor: Any = None
        self._shapes: OrderedDict[str, Shape] = OrderedDict()
        self.available = image_token is not None and self._has_place()
        """Whether images can be read: the chat template gives them a place."""

    def _has_place(self) -> bool:
        probe = Message("user", "a", parts=(_PROBE, "a"))
        try:
            prompt = render_prompt(self._tokenizer, [probe], (), thinking=False, template_kwargs={})
        except LibMlxError:
            return False
        return prompt.count(self.image_token) == 1

    def read(self, images: Iterable[Image], bounds: PixelBounds) -> list[Picture]:
        """Decode and resize images; `bounds` are the request's, for those that have none of their own.

        Raises:
            InvalidArgument: an image cannot be read, or bounds contradict each other.
            CorruptModel: the checkpoint's processor cannot be loaded.
        """
        return [self._read(image, image.bounds.over(bounds)) for image in images]

    def _read(self, image: Image, bounds: PixelBounds) -> Picture:
        if not isinstance(image.source, bytes):
            raise InvalidArgument(
                "The image is a URL, which is not fetched here.", hint="Give the file's content.", param=image.param
            )
        return self.picture(decode(image.source, image.param), bounds, image.param)

    def picture(self, pixels: Pixels, bounds: PixelBounds, param: str) -> Picture:
        """Resize a decoded image to what enters the model; raises as `read` does."""
        processor = self._image_processor()
        bounds = bounds.over(self._bounds).over(_own_bounds(processor))
        if bounds.least is not None and bounds.most is not None and bounds.least > bounds.most:
            raise InvalidArgument(
                f"An image of {bounds.least} pixels at least and {bounds.most} at most there is not.",
                hint="Give bounds that leave room.",
                param=param,
            )
        pixels = _resized(pixels, bounds, _factor(processor), param)
        digest = hashlib.sha256(str(pixels.size).encode())
        digest.update(pixels.tobytes())
        key = digest.hexdigest()
        return Picture(key, pixels, bounds, self._shape(key, pixels, bounds, param))

    def _shape(self, digest: str, pixels: Pixels, bounds: PixelBounds, param: str) -> Shape:
        with self._lock:
            known = self._shapes.get(digest)
        if known is None:
            known = self._measured(pixels, bounds, param)
            with self._lock:
                self._shapes[digest] = known
                if len(self._shapes) > _KNOWN_SHAPES:
                    self._shapes.popitem(last=False)
        return known

    def _measured(self, pixels: Pixels, bounds: PixelBounds, param: str) -> Shape:
        processor = self._image_processor()
        if _factor(processor):
            grid = (1, pixels.height // processor.patch_size, pixels.width // processor.patch_size)
            return Shape((self.image_token,) * (grid[1] * grid[2] // processor.merge_size**2), grid)
        made = self._process(pixels, bounds, param)
        tokens = tuple(int(token) for token in made["input_ids"][0])
        grids = made.get("image_grid_thw")
        return Shape(tokens, None if grids is None else (int(grids[0][0]), int(grids[0][1]), int(grids[0][2])))

    def inputs(self, picture: Picture) -> Inputs:
        """Return what the network is given of a picture. Takes CPU time: not for the engine thread.

        Raises:
            InvalidArgument: the processor refuses it.
        """
        made = self._process(picture.pixels, picture.bounds, "images")
        return {name: value for name, value in made.items() if name not in _TEXT_INPUTS}

    def _process(self, pixels: Pixels, bounds: PixelBounds, param: str) -> dict[str, NDArray[Any]]:
        processor = self._load()
        try:
            if _factor(processor.image_processor):  # no MLX: this thread is not the engine's
                sizes = {"min_pixels": bounds.least, "max_pixels": bounds.most}
                made = processor.image_processor(images=[pixels], **sizes)
            else:
                made = processor(text=[self._marker()], images=[pixels])
            return {name: np.asarray(value) for name, value in made.items() if value is not None}
        except Exception as error:
            raise InvalidArgument(
                f"The model's processor refuses the image: {str(error)[:200]}.", hint="Send another one.", param=param
            ) from error

    def _marker(self) -> str:
        with self._tokenizer.lock:
            return str(self._tokenizer.wrapper.convert_ids_to_tokens(self.image_token))

    def _image_processor(self) -> Any:
        return self._load().image_processor

    def _load(self) -> Any:
        with self._lock:
            if self._processor is None:
                try:
                    self._processor = upstream_vlm.load_processor(self._checkpoint)
                except Exception as error:
                    raise CorruptModel(
                        f"The image processor of {self._checkpoint.path} cannot be loaded: {str(error)[:200]}.",
                        hint="Its preprocessor_config.json is missing or damaged; fetch the model again.",
                    ) from error
            return self._processor

    def place(
        self, prompt: list[int], pictures: Sequence[Picture], boundaries: Sequence[int]
    ) -> tuple[list[int], PromptMedia, tuple[int, ...]]:
        """Return the prompt with numbers for its images, the images, and `boundaries` moved to where they are then.

        Raises:
            InvalidArgument: a text holds what stands for an image.
        """
        if prompt.count(self.image_token) != len(pictures):
            raise InvalidArgument(
                f"A text holds {self._marker()!r}, which stands for an image.", hint="Remove it.", param="messages"
            )
        tokens: list[int] = []
        numbers: list[int] = []
        spans: list[Span] = []
        moved = {}
        rest = iter(pictures)
        marks = frozenset(boundaries)
        for at, token in enumerate(prompt):
            if at in marks:
                moved[at] = len(tokens)
            if token != self.image_token:
                tokens.append(token)
                numbers.append(token)
                continue
            picture = next(rest)
            spans += _spans(picture, len(tokens), self.image_token)
            numbers += _numbers(picture, self.image_token)
            tokens += picture.shape.tokens
        grids = tuple(picture.shape.grid for picture in pictures if picture.shape.grid)
        by_digest = {picture.digest: picture for picture in pictures}
        media = PromptMedia(tokens, self.image_token, tuple(spans), by_digest, grids)
        return numbers, media, tuple(moved.get(place, len(tokens)) for place in boundaries)


def _factor(processor: Any) -> int:
    """Return the side of a merged patch of a processor that works as Qwen's does; 0 of others."""
    names = ("patch_size", "merge_size", "min_pixels", "max_pixels", "num_image_tokens")
    if not all(hasattr(processor, name) for name in names):
        return 0
    return int(processor.patch_size * processor.merge_size)


def _own_bounds(processor: Any) -> PixelBounds:
    return PixelBounds(processor.min_pixels, processor.max_pixels) if _factor(processor) else PixelBounds()


def _resized(pixels: Pixels, bounds: PixelBounds, factor: int, param: str) -> Pixels:
    """Return the picture in the size that it enters the model with; where that is the processor's to say, nearly so."""
    from PIL import Image

    high, wide = pixels.height, pixels.width
    if factor and bounds.least is not None and bounds.most is not None:
        try:
            high, wide = smart_resize(high, wide, factor=factor, min_pixels=bounds.least, max_pixels=bounds.most)
        except InvalidArgument as error:
            raise InvalidArgument(str(error), hint=error.hint, param=param) from None
    else:
        area = high * wide
        aim = max(min(area, bounds.most or area), bounds.least or 0)
        high, wide = (max(1, round(side * (aim / area) ** 0.5)) for side in (high, wide))
    return pixels if (wide, high) == pixels.size else pixels.resize((wide, high), Image.Resampling.BICUBIC)


def _spans(picture: Picture, begin: int, image_token: int) -> list[Span]:
    """Return where features stand, of a picture whose tokens begin at `begin`."""
    spans: list[Span] = []
    count = 0
    for at, token in enumerate(picture.shape.tokens, begin):
        if token != image_token:
            continue
        if spans and spans[-1].stop == at:
            spans[-1] = Span(spans[-1].start, at + 1, picture.digest, spans[-1].first)
        else:
            spans.append(Span(at, at + 1, picture.digest, count))
        count += 1
    return spans


def _numbers(picture: Picture, image_token: int) -> list[int]:
    tokens = picture.shape.tokens
    hashed = hashlib.shake_256(picture.digest.encode()).digest(4 * len(tokens))
    negative = (-1 - (np.frombuffer(hashed, "<u4") >> 1).astype(np.int64)).tolist()
    return [own if token == image_token else token for token, own in zip(tokens, negative, strict=True)]
