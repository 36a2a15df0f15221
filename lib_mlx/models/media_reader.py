"""Reads the images, sounds and videos of requests: from files to what enters a model. No MLX here; any thread."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import ContextLengthExceeded, CorruptModel, InvalidArgument, LibMlxError
from lib_mlx.generation import FrameBounds, GenerationRequest, Image, Message, PixelBounds, Sound, Video
from lib_mlx.models import films, sounds, upstream_vlm
from lib_mlx.models.chat_template import render_prompt
from lib_mlx.models.image_size import smart_resize, smart_resize_video
from lib_mlx.models.media_prompt import Clip, Picture, Recording, Shape, place_media
from lib_mlx.models.pictures import MAX_PIXELS, content_of, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image as Pixels

    from lib_mlx.generation import Attachment, MediaKind
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer
    from lib_mlx.models.media_prompt import Inputs, Medium, PromptMedia

_KNOWN_TOKENS = 1 << 20  # of images and sounds of which it is remembered what stands for them
_MOST_PIXELS = 4 * MAX_PIXELS  # of one request: what keeps the thread that prepares all requests busy for seconds
_PROBES: tuple[Attachment, ...] = (Image(b""), Sound(b""), Video(b""))
_TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
_MOST_SECONDS = 30.0  # of a sound, if the processor does not say
_WORDS: dict[MediaKind, str] = {"image": "image", "audio": "sound", "video": "video"}
_MOST_SIDE, _MOST_TOGETHER = 1024, 64 << 20  # pixels of frames that are seen as images


class MediaReader:
    """Reads the images, sounds and videos of one model's requests.

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
        self._tokens_of_shapes = 0
        self._placed = frozenset(probe.kind for probe in _PROBES if self._has_place(probe))
        self.kinds: frozenset[MediaKind] = self._placed | ({"video"} if "image" in self._placed else set())
        """The kinds that can be read: the network takes them, and the chat template gives them a place.

        Videos are seen as images, one after the other, where they have none of their own.
        """

    def _has_place(self, probe: Attachment) -> bool:
        if probe.kind not in self._placeholders:
            return False
        message = Message("user", "a", parts=(probe, "a"))
        try:
            prompt = render_prompt(self._tokenizer, [message], (), thinking=False, template_kwargs={})
        except LibMlxError:
            return False
        return prompt.count(self._placeholders[probe.kind]) == 1

    def unrolled(self, request: GenerationRequest) -> GenerationRequest:
        """Return `request` with images in place of videos, if the model has no place for those.

        Raises:
            InvalidArgument: one cannot be read.
        """
        if "video" in self._placed or not any(isinstance(one, Video) for one in request.attachments):
            return request
        messages = [
            replace(message, parts=tuple(one for part in message.parts for one in _frames(part, request.frame_bounds)))
            for message in request.messages
        ]
        return replace(request, messages=tuple(messages))

    def read(self, request: GenerationRequest, context_length: int | None = None) -> list[Medium]:
        """Decode a request's attachments and bring them to the model's size and rate, no more of them than can be used.

        Args:
            request: with attachments of the kinds that can be read, and their contents.
            context_length: the most tokens that they may take together; None: as many as there are.

        Raises:
            InvalidArgument: one cannot be read, bounds contradict each other, or there are too many pixels.
            ContextLengthExceeded: they take too many tokens.
            CorruptModel: the checkpoint's processor cannot be loaded.
        """
        read: list[Medium] = []
        area = tokens = 0
        for one in request.attachments:
            medium, pixels = self._read(one, request)
            read.append(medium)
            area += pixels
            tokens += len(medium.shape.tokens)
            if area > _MOST_PIXELS:
                raise InvalidArgument(
                    f"The images up to this one have {area} pixels; a request may have {_MOST_PIXELS}.",
                    hint="Send fewer or smaller images.",
                    param=one.param,
                )
            if context_length is not None and tokens >= context_length:
                raise ContextLengthExceeded(
                    f"The {_WORDS[one.kind]}s up to this one take {tokens} tokens; this model's context holds"
                    f" {context_length}.",
                    hint="Send fewer or smaller ones, or set max_pixels.",
                    param=one.param,
                )
        return read

    def _read(self, one: Attachment, request: GenerationRequest) -> tuple[Medium, int]:
        """Return what enters the model, and how many pixels that was."""
        if isinstance(one, Sound):
            return self._hear(one, request), 0
        if isinstance(one, Video):
            clip = self._watch(one, request)
            return clip, clip.frames.size // 3
        pixels = decode(content_of(one), one.param)
        picture = self.picture(pixels, one, request)
        return picture, max(_area(pixels), _area(picture.pixels))

    def picture(self, pixels: Pixels, image: Image, request: GenerationRequest) -> Picture:
        """Resize `pixels`, an image of `request`, to what enters the model; raises as `read` does."""
        processor = self._image_processor()
        param = image.param
        bounds = image.bounds.over(request.pixel_bounds).over(self._bounds).over(_own_bounds(processor))
        if bounds.least is not None and bounds.most is not None and bounds.least > bounds.most:
            raise InvalidArgument(
                f"An image of {bounds.least} pixels at least and {bounds.most} at most there is not.",
                hint="Give bounds that leave room.",
                param=param,
            )
        pixels = _resized(pixels, bounds, _factor(processor), param)
        key = _key(f"image {pixels.size}", pixels.tobytes(), request)
        return Picture("image", key, self._shape(key, lambda: self._seen(pixels, bounds, param)), pixels, bounds)

    def _hear(self, sound: Sound, request: GenerationRequest) -> Recording:
        processor = self._load()
        rate = int(processor.feature_extractor.sampling_rate)
        samples = sounds.decode(sound.source, sound.format, rate, _most_seconds(processor), sound.param)
        key = _key("sound", samples.tobytes(), request)
        return Recording("audio", key, self._shape(key, lambda: self._heard(samples, sound.param)), samples)

    def _watch(self, video: Video, request: GenerationRequest) -> Clip:
        processor = self._load().video_processor
        factor = processor.patch_size * processor.merge_size
        most = request.pixel_bounds.over(self._bounds).most

        def shrink(frame: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
            least, all_together = processor.min_pixels, processor.max_pixels
            if most is not None:
                all_together = min(all_together, most * count)
                least = min(least, all_together)
            size = smart_resize_video(count, frame.shape[0], frame.shape[1], factor, least, all_together)
            return _resized_frame(frame, *size)

        frames = films.decode(content_of(video), request.frame_bounds, shrink, video.param)
        kept = np.stack(frames).transpose(0, 3, 1, 2)
        count, _, high, wide = kept.shape
        grid = (-(-count // processor.temporal_patch_size), high // processor.patch_size, wide // processor.patch_size)
        key = _key(f"video {kept.shape}", kept.tobytes(), request)
        placeholders = grid[0] * grid[1] * grid[2] // processor.merge_size**2
        return Clip("video", key, Shape((self._placeholders["video"],) * placeholders, grid), kept)

    def _shape(self, digest: str, measure: Callable[[], Shape]) -> Shape:
        with self._lock:
            known = self._shapes.get(digest)
        if known is None:
            known = measure()
            with self._lock:
                if self._shapes.setdefault(digest, known) is known:
                    self._tokens_of_shapes += len(known.tokens)
                while self._tokens_of_shapes > _KNOWN_TOKENS:
                    self._tokens_of_shapes -= len(self._shapes.popitem(last=False)[1].tokens)
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
        elif isinstance(medium, Clip):
            exact = copy.copy(self._load().video_processor)
            exact.min_pixels, exact.max_pixels = 1, medium.frames.size  # the frames have their size
            with _refused("video", "videos"):
                made = _arrays(exact(videos=[medium.frames]))
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
        found = getattr(self._load(), "image_processor", None)
        if found is None:  # upstream takes a processor whose files are missing for a tokenizer
            raise CorruptModel(
                f"The processor of {self._checkpoint.path} is for text alone.",
                hint="Its preprocessor_config.json is missing or damaged; fetch the model again.",
            )
        return found

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
        """Return the prompt with numbers for its media; see `place_media`.

        Raises:
            InvalidArgument: a text holds what stands for a medium.
        """
        for kind, token in self._placeholders.items():
            if prompt.count(token) != sum(one.kind == kind for one in media):
                raise InvalidArgument(
                    f"A text holds {self._marker(kind)!r}, which stands for {_WORDS[kind]}s.",
                    hint="Remove it.",
                    param="messages",
                )
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


def _frames(part: str | Attachment, bounds: FrameBounds) -> list[str | Attachment]:
    """Return the frames of a video as images; another part as it is."""
    from PIL import Image as Pictures

    if not isinstance(part, Video):
        return [part]

    def shrink(frame: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
        area = frame.shape[0] * frame.shape[1]
        by = min(1, _MOST_SIDE / max(frame.shape), (_MOST_TOGETHER / count / area) ** 0.5)
        return _resized_frame(frame, *(max(1, round(side * by)) for side in frame.shape[:2]))

    images: list[str | Attachment] = []
    for frame in films.decode(content_of(part), bounds, shrink, part.param):
        file = io.BytesIO()
        Pictures.fromarray(frame).save(file, "BMP")
        images.append(Image(file.getvalue(), param=part.param))
    return images


def _key(what: str, content: bytes, request: GenerationRequest) -> str:
    """Return a medium's digest. What is kept of it is not for others to notice: they have another salt."""
    digest = hashlib.sha256(what.encode())
    digest.update(content)
    digest.update(request.cache_salt.encode("utf-8", "replace"))
    return digest.hexdigest()


def _area(pixels: Pixels) -> int:
    return pixels.width * pixels.height


def _resized_frame(frame: NDArray[np.uint8], high: int, wide: int) -> NDArray[np.uint8]:
    from PIL import Image as Pictures

    if frame.shape[:2] == (high, wide):
        return frame
    return np.asarray(Pictures.fromarray(frame).resize((wide, high), resample=Pictures.Resampling.BICUBIC))


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
            raise InvalidArgument(error.message, hint=error.hint, param=param) from None
    else:
        area = high * wide
        aim = max(min(area, bounds.most or area), bounds.least or 0)
        high, wide = (max(1, round(side * (aim / area) ** 0.5)) for side in (high, wide))
    if high * wide > MAX_PIXELS:
        raise InvalidArgument(
            f"The image would be enlarged to {wide} x {high} pixels; {MAX_PIXELS} is the most.",
            hint="Lower min_pixels.",
            param=param,
        )
    return pixels if (wide, high) == pixels.size else pixels.resize((wide, high), Image.Resampling.BICUBIC)
