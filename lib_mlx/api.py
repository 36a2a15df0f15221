"""The Python API: the same runtime as the C library's, with types instead of JSON."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lib_mlx.config import LoadConfig, ServerConfig, parse_config
from lib_mlx.errors import Cancelled, InvalidArgument
from lib_mlx.generation import (
    Constraint,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    GroundingOptions,
    Image,
    Message,
    PixelBounds,
    ReasoningDelta,
    SamplingParams,
    Sound,
    TextDelta,
    Timings,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from lib_mlx.runtime import get_runtime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from PIL.Image import Image as Picture

    from lib_mlx.generation import Attachment, GenerationEvent
    from lib_mlx.grounding.result import Grounding
    from lib_mlx.status import ServerStatus, Status, UnloadReport

PictureSource: TypeAlias = "str | PathLike[str] | bytes | Image | Picture"
SoundSource: TypeAlias = "str | PathLike[str] | bytes | Sound"


@dataclass(frozen=True)
class Generation:
    """A finished answer."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings


class Server:
    """A running HTTP server; a context manager that stops it."""

    def __init__(self, handle: int, status: ServerStatus) -> None:
        self._handle = handle
        self.host = status.host or ""
        self.port = status.port or 0
        self.base_url = status.base_url or ""
        """Point an OpenAI client here."""
        self.model_id = status.model_id or ""
        self.uds = status.uds
        self.api_key = status.api_key
        """What clients must send; None if no key is needed, or the server was running already."""

    def stop(self) -> None:
        """End running streams with their terminal event and close. Blocks, 6 s at most. Idempotent."""
        get_runtime().stop_server(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


_PNG = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})  # Pillow's kinds of pixels that the format has


def image_of(source: PictureSource) -> Image:
    """Return the image in a file (by its path, or by its content) or in an image of Pillow's.

    Raises:
        InvalidArgument: there is no such file, or it is something else.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, bytes):
        return Image(source)
    if isinstance(source, (str, PathLike)):
        try:
            return Image(Path(source).read_bytes())
        except OSError as error:
            raise InvalidArgument(
                f"The image {source} cannot be read: {error.strerror}.", hint="Check the path.", param="images"
            ) from None
    from PIL.Image import Image as Picture

    if not isinstance(source, Picture):
        raise InvalidArgument(
            f"An image is a path, a file's content or an image of Pillow's, not of the type {type(source).__name__}.",
            hint="Read what is in it.",
            param="images",
        )
    content = io.BytesIO()
    (source if source.mode in _PNG else source.convert("RGB")).save(content, "PNG")
    return Image(content.getvalue())


def sound_of(source: SoundSource) -> Sound:
    """Return the sound in a file, by its path or by its content.

    Raises:
        InvalidArgument: there is no such file.
    """
    if isinstance(source, Sound):
        return source
    if isinstance(source, bytes):
        return Sound(source)
    try:
        return Sound(Path(source).read_bytes())
    except OSError as error:
        raise InvalidArgument(
            f"The sound {source} cannot be read: {error.strerror}.", hint="Check the path.", param="audio"
        ) from None


def _messages(prompt: str | Iterable[Message], attachments: Sequence[Attachment]) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt, parts=(*attachments, prompt) if attachments else ())]
    if attachments:
        raise InvalidArgument(
            "Images and sounds of a conversation belong into its messages.",
            hint="Give them in Message.parts.",
            param="images" if isinstance(attachments[0], Image) else "audio",
        )
    return list(prompt)


class Model:
    """A loaded model; a context manager that unloads it. Every method may be called from any thread."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def status(self) -> Status:
        """Return the model's and its server's state; never blocks."""
        return get_runtime().status(self._handle)

    def stream(
        self,
        prompt: str | Iterable[Message],
        *,
        system: str | None = None,
        images: Iterable[PictureSource] = (),
        audio: Iterable[SoundSource] = (),
        tools: Iterable[Tool] = (),
        max_tokens: int | None = None,
        stop: str | Iterable[str] = (),
        thinking: bool | None = None,
        sampling: SamplingParams | None = None,
        constraint: Constraint | None = None,
        logprobs: int | None = None,
        cache_salt: str = "",
    ) -> Iterator[GenerationEvent]:
        """Generate an answer to `prompt` (a user's text, or a conversation) and yield its events as they come.

        The last event is `Finished`. Leaving the iterator early cancels the generation.

        Args:
            prompt: the user's text, or the messages so far.
            system: a system message to begin with.
            images: what the text is about, before it: paths, files' contents or Pillow's images. In a conversation
                they belong into its messages (`Message.parts`).
            audio: sounds that the text is about, behind the images: paths or files' contents.
            tools: functions the model may call.
            max_tokens: bound on the tokens of the answer, reasoning included.
            stop: the answer ends before the first of these.
            thinking: whether the model may reason first; None: as it was loaded.
            sampling: how tokens are chosen; the checkpoint's defaults if None.
            constraint: the form that the answer is guaranteed to have.
            logprobs: have each `TextDelta` carry its tokens with their log-probabilities, and at each place those of
                so many likeliest ones.
            cache_salt: prompts are reused only among requests with the same salt.

        Raises:
            LibMlxError: the request is refused, or generation failed.
        """
        messages = _messages(prompt, [*map(image_of, images), *map(sound_of, audio)])
        if system is not None:
            messages.insert(0, Message("system", system))
        request = GenerationRequest(
            messages=tuple(messages),
            tools=tuple(tools),
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            thinking=thinking,
            sampling=sampling or SamplingParams(),
            constraint=constraint,
            logprobs=logprobs,
            cache_salt=cache_salt,
        )
        yield from self._events(request)

    def _events(self, request: GenerationRequest) -> Iterator[GenerationEvent]:
        """Yield the events of a request, the last of which is `Finished`; leaving early cancels it."""
        from lib_mlx.engine.event_stream import ThreadEventStream

        engine = get_runtime().engine(self._handle)
        stream = ThreadEventStream()
        job = engine.submit(engine.prepare(request), stream)
        try:
            while True:
                for event in stream.get():
                    if isinstance(event, Failed):
                        raise event.error
                    yield event
                    if isinstance(event, Finished):
                        return
        finally:
            engine.cancel(job, Cancelled("The iterator was closed."))

    def generate(self, prompt: str | Iterable[Message], **options: Any) -> Generation:
        """Generate an answer and return it whole. Blocks. Options and errors are those of `stream`."""
        text, reasoning, calls = [], [], []
        for event in self.stream(prompt, **options):
            match event:
                case TextDelta(piece):
                    text.append(piece)
                case ReasoningDelta(piece):
                    reasoning.append(piece)
                case ToolCallDelta():
                    calls.append(ToolCall(event.id, event.name, event.arguments))
                case Finished():
                    return Generation(
                        "".join(text), "".join(reasoning), tuple(calls), event.reason, event.usage, event.timings
                    )
        raise AssertionError("a generation ends with Finished or raises")

    def ground(
        self,
        image: PictureSource,
        instruction: str,
        *,
        free: bool = False,
        system: str | None = None,
        max_tokens: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        verifier: Model | None = None,
    ) -> Grounding:
        """Return where on a picture a GUI-Actor finds what an instruction means. Blocks.

        Args:
            image: a screenshot: a file's path or content, or Pillow's picture.
            instruction: what to point at, or with `free` what to do.
            free: leave the action to the model, which may point several times or not at all; else it is one click.
            system: in place of the model's own system prompt.
            max_tokens: bound on an answer that the model makes up.
            min_pixels: the picture is made larger than this before the model sees it.
            max_pixels: it is made smaller than this: quicker, less exact.
            verifier: a vision model that is shown the candidates and ranks them.

        Raises:
            TargetNotFound: the model pointed at nothing.
            UnsupportedFeature: it is no GUI-Actor, or the verifier cannot be used.
            LibMlxError: the picture or the instruction is refused, or something failed.
        """
        from lib_mlx.pointing import verified

        picture = image_of(image)
        picture = replace(picture, bounds=PixelBounds(min_pixels, max_pixels).over(picture.bounds))
        request = GenerationRequest(
            messages=(
                *([Message("system", system)] if system is not None else []),
                Message("user", instruction, parts=(picture, instruction)),
            ),
            max_tokens=max_tokens,
            grounding=GroundingOptions(free=free),
        )
        finished = [event for event in self._events(request) if isinstance(event, Finished)]
        if not finished or finished[-1].grounded is None:
            raise AssertionError("a GUI-Actor's answer ends with what it points at")
        found = finished[-1].grounded.grounding
        return found if verifier is None else verified(found, picture, instruction, verifier.stream)

    def adapters(self) -> tuple[str, ...]:
        """Return the names of the adapters that the model was loaded with."""
        return get_runtime().engine(self._handle).adapters.names

    def set_adapter(self, name: str | None) -> None:
        """Have another adapter from the next request on, or none. Blocks until the requests under way have ended.

        Raises:
            ModelNotFound, CorruptModel, UnsupportedFeature: there is none of that name, or it does not fit.
        """
        get_runtime().engine(self._handle).set_adapter(name)

    def start_server(self, **config: Any) -> Server:
        """Serve the model over HTTP; `config` is that of `ServerConfig`. Blocks until connections are accepted.

        Raises:
            InvalidArgument, AddressInUse, ServerStartFailed: see `lib_mlx.errors`.
        """
        status = get_runtime().start_server(self._handle, parse_config(ServerConfig, config))
        return Server(self._handle, status.server)

    def unload(self) -> UnloadReport:
        """Stop the server, end all requests and free the memory. Blocks. The object is of no use afterwards."""
        return get_runtime().unload(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from lib_mlx.errors import InvalidHandle

        try:
            self.unload()
        except InvalidHandle:  # it was unloaded inside the block
            return


def load_model(model_path: str | PathLike[str], **config: Any) -> Model:
    """Load a model: a directory, a `.gguf` file, or a name known to the store or the Hugging Face cache.

    Blocks until it is ready, or with `wait=False` not at all (poll `Model.status`). `config` is that of
    `lib_mlx.config.LoadConfig`.

    Raises:
        LibMlxError: see `lib_mlx.errors`; `ModelNotFound`, `CorruptModel`, `UnsupportedModel`, `InvalidArgument`.
    """
    parsed = parse_config(LoadConfig, {"model_path": str(model_path), **config})
    return Model(get_runtime().load(parsed).handle)


def ground(image: PictureSource, instruction: str, *, model: Model | str | PathLike[str], **options: Any) -> Grounding:
    """Return where on a picture a GUI-Actor finds what an instruction means; options and errors are `Model.ground`'s.

    Args:
        image: a screenshot: a file's path or content, or Pillow's picture.
        instruction: what to point at.
        model: a loaded one; or a directory or name, which is loaded for this once.
        options: see `Model.ground`.
    """
    if isinstance(model, Model):
        return model.ground(image, instruction, **options)
    with load_model(model) as loaded:
        return loaded.ground(image, instruction, **options)
