"""Requests to a GUI-Actor: checked and tokenised, and one under way. The counterpart of `preparation` and `job`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib_mlx.engine.sampling import resolve_sampling
from lib_mlx.errors import ContextLengthExceeded, Internal, InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Failed, Finished, Grounded, GroundingOptions, Image, Message, TextDelta, Timings, Usage
from lib_mlx.grounding.actor import GroundingPrompt
from lib_mlx.grounding.screenshot import Screenshot, fetched
from lib_mlx.models.pictures import content_of, decode

if TYPE_CHECKING:
    from lib_mlx.engine.event_stream import Batch, EventStream
    from lib_mlx.engine.sampling import ResolvedSampling
    from lib_mlx.errors import LibMlxError
    from lib_mlx.generation import GenerationRequest
    from lib_mlx.grounding.interface import Interface
    from lib_mlx.grounding.result import Grounding
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer
    from lib_mlx.models.media_prompt import PromptMedia
    from lib_mlx.models.media_reader import MediaReader
    from lib_mlx.models.vision_network import MediaPlan

MOST_TOKENS = 256
"""Of an answer that the model makes up, if the request does not say."""


@dataclass(frozen=True)
class PreparedGrounding:
    """A request that was checked and tokenised: nothing in it can be refused any more."""

    grounding: GroundingPrompt
    media: PromptMedia
    sampling: ResolvedSampling
    options: GroundingOptions
    client: str = ""

    @property
    def prompt(self) -> list[int]:
        """The prompt's tokens."""
        return self.grounding.tokens


class GroundingPreparer:
    """Prepares the requests of one GUI-Actor. No MLX; any thread.

    Args:
        checkpoint: for its default sampling, which is told and has no effect.
        tokenizer: the checkpoint's.
        interface: its tokens and prompts.
        reader: reads images.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: LoadedTokenizer,
        interface: Interface,
        reader: MediaReader,
    ) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._interface = interface
        self._reader = reader

    def prepare(self, request: GenerationRequest, *, context_length: int, vocab_size: int) -> PreparedGrounding:
        """Check `request`, whose conversation is one picture and one instruction, and tokenise it.

        Args:
            request: what is asked.
            context_length: the most tokens of prompt and answer together.
            vocab_size: token ids are below it.

        Raises:
            InvalidArgument: it is something else, or a part of it cannot be read.
            UnsupportedFeature: it asks for what pointing has not.
            ContextLengthExceeded: the picture has too many patches.
        """
        image, screenshot, media = self._read(request)
        options = request.grounding or GroundingOptions()
        most = (request.max_tokens or MOST_TOKENS) if options.free else 0
        room = context_length - len(media.tokens)
        if room < (1 if options.free else 0):
            raise ContextLengthExceeded(
                f"The picture and the instruction take {len(media.tokens)} tokens; this model's context holds "
                f"{context_length}.",
                hint="Set max_pixels, or send a smaller picture.",
                param=image.param,
            )
        return PreparedGrounding(
            GroundingPrompt(media.tokens, screenshot, min(most, room)),
            media,
            resolve_sampling(request.sampling, self._checkpoint.generation_config, vocab_size),
            options,
            request.client,
        )

    def count_prompt(self, request: GenerationRequest) -> int:
        """Return how many tokens the prompt of `request` has, be they too many or not; raises as `prepare` does."""
        return len(self._read(request)[2].tokens)

    def _read(self, request: GenerationRequest) -> tuple[Image, Screenshot, PromptMedia]:
        """Return the picture, what is kept of it, and the prompt."""
        _refuse_impossible(request)
        image, instruction, system = _question(request.messages)
        pixels = decode(content_of(image), image.param)
        try:
            resized = fetched(pixels)
        except InvalidArgument as error:
            raise InvalidArgument(error.message, hint=error.hint, param=image.param) from None
        picture = self._reader.picture(resized, image, request)
        free = request.grounding is not None and request.grounding.free
        text = self._interface.prompt(instruction, free=free, system=system)
        with self._tokenizer.lock:
            prompt = list(self._tokenizer.wrapper.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        _, media, _ = self._reader.place(prompt, [picture], ())
        return image, Screenshot(media.grids[0], pixels.width, pixels.height), media


def _refuse_impossible(request: GenerationRequest) -> None:
    """Refuse what a request asks for beside a place on a picture."""
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InvalidArgument(f"max_tokens is {request.max_tokens}; it must be at least 1.", param="max_tokens")
    asked = {
        "tools": bool(request.tools),
        "stop": bool(request.stop),
        "logprobs": request.logprobs is not None,
        # There is no template; an effort is of reasoning, of which there is none.
        "chat_template_kwargs": bool(request.template_kwargs.keys() - {"reasoning_effort"}),
        request.constraint.param if request.constraint else "response_format": request.constraint is not None,
    }
    if request.prefill:
        raise UnsupportedFeature(
            "This model says a whole action; it cannot go on from an answer that has begun.",
            hint="End the conversation with the user's message.",
            param="messages",
        )
    for param, there in asked.items():
        if there:
            raise UnsupportedFeature(
                f"This model points at things on a picture; it has no {param}.", hint="Remove it.", param=param
            )


def _question(messages: tuple[Message, ...]) -> tuple[Image, str, str | None]:
    """Return the picture, the instruction and the system prompt, if there is one."""
    system = [message.content for message in messages if message.role == "system"]
    asked = [message for message in messages if message.role != "system"]
    images: list[Image] = []
    for part in (part for message in asked for part in message.parts):
        if isinstance(part, Image):
            images.append(part)
        elif not isinstance(part, str):
            raise UnsupportedFeature(
                "This model reads text and an image, nothing else.", hint="Send a screenshot.", param=part.param
            )
    if len(images) != 1 or len(asked) != 1 or asked[0].role != "user":
        raise InvalidArgument(
            f"This model is asked with one picture and one instruction, not with {len(images)} pictures in "
            f"{len(asked)} messages.",
            hint="Send one message of the user with a screenshot and what to point at.",
            param="messages",
        )
    return images[0], asked[0].content, "\n".join(system) or None


class GroundingJob:
    """A `PreparedGrounding` and how far it has come; see `Job`."""

    def __init__(self, request: PreparedGrounding, stream: EventStream) -> None:
        self.request = request
        self.stream = stream
        self.plan: MediaPlan | None = None
        self.error: LibMlxError | None = None
        self.done = False
        self.made = 0
        """Tokens of the answer so far."""
        self._submitted = time.perf_counter()
        self._started: float | None = None

    def cancel(self, error: LibMlxError) -> None:
        """End the request at the next step with `Failed(error)`. Idempotent; any thread."""
        if self.error is None:
            self.error = error

    def start(self) -> None:
        """Its turn has come."""
        self._started = time.perf_counter()

    def fail(self) -> Failed:
        """Return the terminal event of a request that was cancelled or failed."""
        self.done = True
        return Failed(self.error or Internal("The request failed without a reason."), self.usage())

    def finish(self, found: Grounding) -> Batch:
        """Return the events of a request that went well."""
        self.done = True
        now = time.perf_counter()
        started = now if self._started is None else self._started
        timings = Timings(started - self._submitted, now - started, 0.0, now - self._submitted)
        cut = 0 < self.request.grounding.max_tokens <= self.made
        grounded = Grounded(found, self.request.options)
        finished = Finished("length" if cut else "stop", self.usage(), timings, grounded=grounded)
        return [TextDelta(found.text), finished]

    def usage(self) -> Usage:
        """Return the token counts so far. Any thread."""
        return Usage(prompt=len(self.request.prompt), completion=self.made)
