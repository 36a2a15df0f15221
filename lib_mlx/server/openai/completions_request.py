"""The body of `POST /v1/completions` and what it means for the engine: text that is continued as it is.

Fields beyond OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `cache_salt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import GenerationRequest
from lib_mlx.server.fields import Bias, refuse, refuse_unless
from lib_mlx.server.openai.chat_request import StreamOptions
from lib_mlx.server.openai.common import SamplingFields, StopSequences, sampling
from lib_mlx.server.openai.completions import Echo

if TYPE_CHECKING:
    from lib_mlx.server.session import Session

_MAX_TOKENS = 16  # OpenAI's default for this endpoint
_MAX_ANSWERS = 128

Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(SamplingFields):
    """The whole body."""

    prompt: Text | Tokens | Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=_MAX_ANSWERS)]
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: StopSequences | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Bias] | None = None
    n: Annotated[int, Field(ge=1, le=_MAX_ANSWERS)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    # Fields that are refused unless they ask for what happens anyway.
    best_of: int | None = None
    suffix: Any = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The texts and tokens to be continued."""
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        prompts: list[Any] = [self.prompt] if single else list(self.prompt)
        return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


def to_generation(body: CompletionRequest) -> list[GenerationRequest]:
    """Return the engine's request for each prompt.

    Raises:
        UnsupportedFeature: an option cannot be honoured.
        InvalidArgument: fields contradict each other.
    """
    refuse_unless("suffix", body.suffix, "", why="this server fills no gaps")
    refuse_unless("best_of", body.best_of, body.n or 1, why="all answers are returned")
    if body.stream_options is not None and not body.stream:
        raise InvalidArgument(
            "'stream_options' is only allowed with 'stream': true.", hint="Remove it.", param="stream_options"
        )
    if body.echo and body.logprobs is not None:
        refuse("echo", "the prompt's own probabilities are not computed", hint="Remove it, or 'logprobs'.")
    if len(body.prompts) * (body.n or 1) > _MAX_ANSWERS:
        raise InvalidArgument(f"More than {_MAX_ANSWERS} answers were asked for.", hint="Ask for fewer.", param="n")
    return [
        GenerationRequest(
            prompt=prompt,
            sampling=sampling(body, body.logit_bias),
            stop=tuple(body.stop or ()),
            max_tokens=body.max_tokens or _MAX_TOKENS,
            cache_salt=body.cache_salt or "",
            logprobs=body.logprobs,
        )
        for prompt in body.prompts
    ]


def echoes(body: CompletionRequest, session: Session, choices: int) -> list[Echo]:
    """Return what stands before each answer, and which prompt it belongs to."""
    return [
        Echo(number, _text(prompt, session) if body.echo else "")
        for number, prompt in enumerate(body.prompts)
        for _ in range(choices)
    ]


def _text(prompt: str | tuple[int, ...], session: Session) -> str:
    return prompt if isinstance(prompt, str) else session.decode(prompt)
