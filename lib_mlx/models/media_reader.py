"""Reads the images and sounds of requests: from files to what enters a model. No MLX here; any thread."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import CorruptModel, InvalidArgument, LibMlxError
from lib_mlx.generation import Image, Message, PixelBounds, Sound
from lib_mlx.models import sounds, upstream_vlm
from lib_mlx.models.chat_template import render_prompt
from lib_mlx.models.image_size import smart_resize
from lib_mlx.models.media_prompt import Picture, Recording, Shape, place_media
from lib_mlx.models.pictures import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image as Pixels

    from lib_mlx.generation import Attachment, MediaKind
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer
    from lib_mlx.models.media_prompt import Inputs, Medium, PromptMedia

_KNOWN_SHAPES = 4096  # images and sounds of which it is remembered how many tokens they take
_PROBES: tuple[Attachment, ...] = (Image(b""), Sound(b""))
_TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
_MOST_SECONDS = 30.0  # of a sound, if the processor does not say
_WORDS: dict[MediaKind, str] = {"image": "image", "audio": "sound"}


class MediaReader:
    """Reads the images and sounds of one model's requests.

    Args:
        checkpoint: for its processor, which is loaded when it is first needed.
        tokenizer: the checkpoint's.
        placeholders: the tokens that stand for a piece of each kind of medium that the network reads.
        bounds: of images that have none of their own.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: LoadedTokenizer,
        placeholders: Mapping[MediaKind, int],
        bounds: PixelBounds,
    ) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._placeholders = placeholders
        self._bounds = bounds
        self._lock = threading.Lock()
        self._processor: Any = None
        self._shapes: OrderedDict[str, Shape] = OrderedDict()
        self.kinds = frozenset(probe.kind for probe in _PROBES if self._has_place(probe))
        """The kinds that can be read: the network takes them, and the chat template gives them a place."""

    def _has_place(self, probe: Attachment) -> bool:
        if probe.kind not in self._placeholders:
            return False
        message = Message("user", "a", parts=(probe, "a"))
        try:
            prompt = render_prompt(self._tokenizer, [message], (), thinking=False, template_kwargs={})
        except LibMlxError:
            return False
        return prompt.count(self._placeholders[probe.kind]) == 1

    def read(self, attachments: Iterable[Attachment], bounds: PixelBounds) -> list[Medium]:
        """Decode attachments and bring them to the model's size and rate.

        Args:
            attachments: of the kinds that can be read.
            bounds: the request's, for images that have none of their own.

        Raises:
            InvalidArgument: one cannot be read, or bounds contradict each other.
            CorruptModel: the checkpoint's processor cannot be loaded.
        """
        return [
            self._hear(one) if isinstance(one, Sound) else self._see(one, one.bounds.over(bounds))
            for one in attachments
        ]

    def _see(self, image: Image, bounds: PixelBounds) -> Picture:
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
        return Picture("image", key, self._shape(key, lambda: self._seen(pixels, bounds, param)), pixels, bounds)

    def _hear(self, sound: Sound) -> Recording:
        processor = self._load()
        rate = int(processor.feature_extractor.sampling_rate)
        samples = sounds.decode(sound.source, sound.format, rate, _most_seconds(processor), sound.param)
        key = hashlib.sha256(b"sound" + samples.tobytes()).hexdigest()
        return Recording("audio", key, self._shape(key, lambda: self._heard(samples, sound.param)), samples)

    def _shape(self, digest: str, measure: Callable[[], Shape]) -> Shape:
        with self._lock:
            known = self._shapes.get(digest)
        if known is None:
            known = measure()
            with self._lock:
                self._shapes[digest] = known
                if len(self._shapes) > _KNOWN_SHAPES:
                    self._shapes.popitem(last=False)
        return known

    def _heard(self, samples: NDArray[np.float32], param: str) -> Shape:
        return Shape(tuple(int(token) for token in self._process("audio", [samples], param)["input_ids"][0]))

    def _seen(self, pixels: Pixels, bounds: PixelBounds, param: str) -> Shape:
        processor = self._image_processor()
        if _factor(processor):
            grid = (1, pixels.height // processor.patch_size, pixels.width // processor.patch_size)
            return Shape((self._placeholders["image"],) * (grid[1] * grid[2] // processor.merge_size**2), grid)
        made = self._pixels(pixels, bounds, param)
        tokens = tuple(int(token) for token in made["input_ids"][0])
        grids = made.get("image_grid_thw")
        return Shape(tokens, None if grids is None else (int(grids[0][0]), int(grids[0][1]), int(grids[0][2])))

    def inputs(self, medium: Medium) -> Inputs:
        """Return what the network is given of a medium. Takes CPU time: not for the engine thread.

        Raises:
            InvalidArgument: the processor refuses it.
        """
        if isinstance(medium, Picture):
            made = self._pixels(medium.pixels, medium.bounds, "images")
        elif isinstance(medium, Recording):
            made = self._process("audio", [medium.samples], "audio")
        else:
            raise TypeError(type(medium).__name__)
        return {name: value for name, value in made.items() if name not in _TEXT_INPUTS}

    def _pixels(self, pixels: Pixels, bounds: PixelBounds, param: str) -> dict[str, NDArray[Any]]:
        processor = self._image_processor()
        if not _factor(processor):
            return self._process("image", [pixels], param)
        # No MLX: this thread is not the engine's.
        with _refused("image", param):
            return _arrays(processor(images=[pixels], min_pixels=bounds.least, max_pixels=bounds.most))

    def _process(self, kind: MediaKind, contents: list[Any], param: str) -> dict[str, NDArray[Any]]:
        """Return what the checkpoint's processor makes of one medium and its placeholder."""
        given: dict[str, Any] = {"images" if kind == "image" else "audio": contents}
        with _refused(kind, param):
            return _arrays(self._load()(text=[self._marker(kind)], **given))

    def _marker(self, kind: MediaKind) -> str:
        with self._tokenizer.lock:
            return str(self._tokenizer.wrapper.convert_ids_to_tokens(self._placeholders[kind]))

    def _image_processor(self) -> Any:
        return self._load().image_processor

    def _load(self) -> Any:
        with self._lock:
            if self._processor is None:
                try:
                    self._processor = upstream_vlm.load_processor(self._checkpoint)
                except Exception as error:
                    raise CorruptModel(
                        f"The processor of {self._checkpoint.path} cannot be loaded: {str(error)[:200]}.",
                        hint="Its preprocessor_config.json is missing or damaged; fetch the model again.",
                    ) from error
            return self._processor

    def place(
        self, prompt: Sequence[int], media: Sequence[Medium], boundaries: Sequence[int]
    ) -> tuple[list[int], PromptMedia, tuple[int, ...]]:
        """Return the prompt with numbers for its media; see `place_media`."""
        return place_media(prompt, media, self._placeholders, boundaries)


@contextlib.contextmanager
def _refused(kind: MediaKind, param: str) -> Iterator[None]:
    """Tell by name what a processor refuses: it raises what it likes."""
    try:
        yield
    except Exception as error:
        raise InvalidArgument(
            f"The model's processor refuses the {_WORDS[kind]}: {str(error)[:200]}.",
            hint="Send another one.",
            param=param,
        ) from error


def _arrays(made: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(value) for name, value in made.items() if value is not None}


def _most_seconds(processor: Any) -> float:
    """Return how long a sound is heard; processors cut off what comes later, unasked."""
    tokens, each = (getattr(processor, name, None) for name in ("audio_seq_length", "audio_ms_per_token"))
    return tokens * each / 1000 if tokens and each else _MOST_SECONDS


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
