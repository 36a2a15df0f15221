"""From a request to what the engine runs: rendered, tokenised and checked against one model. No MLX; any thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from lib_mlx.engine.detokenizer import token_text
from lib_mlx.engine.grammar import Gate, GrammarCompiler
from lib_mlx.engine.job import PreparedRequest
from lib_mlx.engine.output_format import output_format
from lib_mlx.engine.output_parser import Opening, OutputFormat
from lib_mlx.engine.reasoning_limit import ReasoningLimit
from lib_mlx.engine.sampling import resolve_sampling, sampling_defaults
from lib_mlx.errors import ContextLengthExceeded, CorruptModel, InvalidArgument, UnsupportedFeature
from lib_mlx.models.chat_template import generation_prompt, message_boundaries, render_begun, render_prompt, tool_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from lib_mlx.config import GenerationDefaults
    from lib_mlx.engine.grammar import Grammar
    from lib_mlx.generation import GenerationRequest, MediaKind, Tool
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer
    from lib_mlx.models.media_prompt import PromptMedia
    from lib_mlx.models.media_reader import MediaReader

T = TypeVar("T")
_PLURALS: dict[MediaKind, str] = {"image": "images", "audio": "sounds", "video": "videos"}


class RequestPreparer:
    """Prepares the requests of one model.

    Args:
        checkpoint: for its default sampling.
        generation: goes before that.
        tokenizer: the checkpoint's.
        vocab_size: token ids are below it.
        context_length: the most tokens of prompt and completion together.
        thinking: whether templates may open a reasoning block by default.
        cuts_prompts: whether to find the ends of messages in prompts, where their caches are kept.
        media: reads images and sounds, if the model has encoders.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: LoadedTokenizer,
        *,
        vocab_size: int,
        context_length: int,
        thinking: bool,
        cuts_prompts: bool,
        generation: GenerationDefaults,
        media: MediaReader | None = None,
    ) -> None:
        self._sampling = sampling_defaults(checkpoint.generation_config, generation)
        self._max_tokens = generation.max_tokens
        self._media = media
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._thinking = thinking
        self._cuts_prompts = cuts_prompts
        self._format = output_format(tokenizer.wrapper)
        self._grammars = GrammarCompiler(tokenizer, self._format, vocab_size)
        self._hidden = _control_tokens(tokenizer.wrapper, self._format)
        self._text = token_text(tokenizer.wrapper.backend_tokenizer, tokenizer.wrapper.decode)

    @property
    def reasons(self) -> bool:
        """Whether the model marks its reasoning."""
        return bool(self._tokenizer.wrapper.has_thinking)

    @property
    def reads(self) -> frozenset[MediaKind]:
        """What the model reads beside text."""
        return self._media.kinds if self._media else frozenset()

    @property
    def limits_reasoning(self) -> bool:
        """Whether one token ends the model's reasoning, so that it can be made to."""
        return self.reasons and len(self._tokenizer.wrapper.think_end_tokens) == 1

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Check `request` and tokenise it. Takes CPU time: not for an event loop.

        Raises:
            ContextLengthExceeded: the prompt leaves no room for a token of completion.
            InvalidArgument: the chat template or the vocabulary refuses something.
            UnsupportedFeature: the model has no tools, or the form asked for cannot be guaranteed.
        """
        self._refuse_impossible(request)
        if request.prompt is not None:
            return self._prepare_raw(request, request.prompt)
        request = self._media.unrolled(request) if self._media else request
        thinking = self._thinks(request)
        prompt, opening = self._prompt(request, thinking=thinking)
        boundaries = self._boundaries(prompt, request, thinking=thinking)
        prompt, media, boundaries = self._place(request, prompt, boundaries)
        room = self._room_after(media.tokens if media else prompt)
        grammar = self._grammar(request, opening, thinking=thinking)
        return PreparedRequest(
            prompt=prompt,
            max_tokens=min(request.max_tokens or self._max_tokens or room, room),
            sampling=resolve_sampling(request.sampling, self._sampling, self._vocab_size),
            stop=request.stop,
            tools=[tool_json(tool) for tool in request.tools] or None,
            parallel_tool_calls=request.parallel_tool_calls,
            output_format=self._output_format(request, grammar),
            opening=opening,
            allowed_tools=request.allowed_tools,
            text=self._text,
            hidden=self._hidden,
            grammar=grammar,
            reasoning_limit=self._reasoning_limit(request, thinking=thinking),
            logprobs=request.logprobs,
            cache_salt=request.cache_salt,
            client=request.client,
            boundaries=boundaries,
            media=media,
        )

    def encode(self, text: str | Sequence[int], *, truncate: bool = False) -> list[int]:
        """Return the tokens of a text as it is, with those that the tokenizer itself puts around it.

        Raises:
            InvalidArgument: it has no token, or one that is not in the vocabulary.
            ContextLengthExceeded: it is longer than the context, and `truncate` does not allow to cut it.
        """
        if isinstance(text, str):
            with self._tokenizer.lock:
                tokens = list(self._tokenizer.wrapper.backend_tokenizer.encode(text).ids)
        else:
            tokens = list(text)
        if not tokens or not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            raise InvalidArgument(
                f"The text has no token, or one beyond the {self._vocab_size} of the vocabulary.",
                hint="Send at least one token.",
                param="input",
            )
        if truncate:
            return tokens[: self._context_length]
        if len(tokens) > self._context_length:
            raise ContextLengthExceeded(
                f"The text has {len(tokens)} tokens; this model's context holds {self._context_length}.",
                hint="Shorten it.",
                param="input",
            )
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, special ones included."""
        with self._tokenizer.lock:
            return str(self._tokenizer.wrapper.backend_tokenizer.decode(list(tokens), skip_special_tokens=False))

    def _prepare_raw(self, request: GenerationRequest, text: str | tuple[int, ...]) -> PreparedRequest:
        prompt = self.encode(text)
        room = self._room_after(prompt)
        return PreparedRequest(
            prompt=prompt,
            max_tokens=min(request.max_tokens or self._max_tokens or room, room),
            sampling=resolve_sampling(request.sampling, self._sampling, self._vocab_size),
            stop=request.stop,
            tools=None,
            parallel_tool_calls=True,
            output_format=OutputFormat(),
            opening=Opening.PLAIN,
            text=self._text,
            hidden=self._hidden,
            grammar=None if request.constraint is None else self._grammars.constraint(request.constraint, Gate()),
            logprobs=request.logprobs,
            cache_salt=request.cache_salt,
            client=request.client,
        )

    def count_prompt(self, request: GenerationRequest) -> int:
        """Return how many tokens the prompt of `request` has, be they too many or not; raises as `prepare` does."""
        self._refuse_impossible(request)
        if request.prompt is not None:
            return len(self.encode(request.prompt))
        request = self._media.unrolled(request) if self._media else request
        prompt, _ = self._prompt(request, thinking=self._thinks(request))
        return len(self._place(request, prompt, (), bounded=False)[0])

    def _place(
        self, request: GenerationRequest, prompt: list[int], boundaries: tuple[int, ...], *, bounded: bool = True
    ) -> tuple[list[int], PromptMedia | None, tuple[int, ...]]:
        """Return the prompt with what stands for its images and sounds, if it is `bounded` within the context.

        See `MediaReader.place`.
        """
        if not request.attachments or self._media is None:
            return prompt, None, boundaries
        media = self._media.read(request, self._context_length if bounded else None)
        return self._media.place(prompt, media, boundaries)

    def _thinks(self, request: GenerationRequest) -> bool:
        """Whether the template may open a reasoning block; not for an answer that has begun."""
        return (self._thinking and not request.prefill) if request.thinking is None else request.thinking

    def _prompt(self, request: GenerationRequest, *, thinking: bool) -> tuple[list[int], Opening]:
        """Return the prompt's tokens and where the model's text begins."""
        if not request.prefill:
            prompt = self._render(render_prompt, request, thinking=thinking)
            return prompt, self._opening(prompt, request, thinking=thinking)
        begin = partial(render_begun, prefill=request.prefill)
        prompt, turn = self._render(begin, request, thinking=thinking)
        # The text goes on: white space after a closed block of reasoning belongs to it.
        return prompt, Opening.IN_REASONING if self._last_marker(turn) is Opening.IN_REASONING else Opening.PLAIN

    def _refuse_impossible(self, request: GenerationRequest) -> None:
        if request.max_tokens is not None and request.max_tokens < 1:
            raise InvalidArgument(f"max_tokens is {request.max_tokens}; it must be at least 1.", param="max_tokens")
        if request.logprobs is not None and not 0 <= request.logprobs <= self._vocab_size:
            raise InvalidArgument(
                f"{request.logprobs} log-probabilities were asked for; the vocabulary has {self._vocab_size} tokens.",
                param="top_logprobs",
            )
        if request.prefill and (request.constraint or request.thinking):
            raise UnsupportedFeature(
                "An answer that has begun can neither be held to a form nor be preceded by reasoning.",
                hint="End the conversation with the user's message.",
                param=request.constraint.param if request.constraint else "thinking",
            )
        for attachment in request.attachments:
            if attachment.kind not in self.reads:
                reads = ", ".join(["text", *(_PLURALS[kind] for kind in _PLURALS if kind in self.reads)])
                reads = " and ".join(reads.rsplit(", ", 1))
                raise UnsupportedFeature(
                    f"This model reads {reads}, not {_PLURALS[attachment.kind]}.",
                    hint="`capabilities` of GET /v1/models tells what others read.",
                    param=attachment.param,
                )
        if request.grounding is not None:
            raise UnsupportedFeature(
                "This model does not point at things.", hint="Use a GUI-Actor, or leave it out.", param="grounding"
            )
        if request.tools and not self._tokenizer.wrapper.has_tool_calling:
            raise UnsupportedFeature(
                "This model has no tool calls.", hint="Leave the tools out, or use another model.", param="tools"
            )

    def _room_after(self, prompt: list[int]) -> int:
        """Return how many tokens the context leaves for the completion; at least one, or the prompt is refused."""
        room = self._context_length - len(prompt)
        if room < 1:
            raise ContextLengthExceeded(
                f"The prompt has {len(prompt)} tokens; this model's context holds {self._context_length}, "
                "with at least one for the completion.",
                hint="Shorten the messages or the tools.",
                param="messages",
            )
        if not prompt or not 0 <= min(prompt) <= max(prompt) < self._vocab_size:
            raise CorruptModel(
                "The chat template gave no token or one outside the model's vocabulary.",
                hint="Tokenizer and weights do not fit together; fetch the model again.",
            )
        return room

    def _render(self, render: Callable[..., T], request: GenerationRequest, *, thinking: bool) -> T:
        return render(
            self._tokenizer,
            request.messages,
            request.tools,
            thinking=thinking,
            template_kwargs=request.template_kwargs,
        )

    def _boundaries(self, prompt: list[int], request: GenerationRequest, *, thinking: bool) -> tuple[int, ...]:
        """Return where messages end in `prompt`, for a model whose caches must be kept as they are there."""
        if not self._cuts_prompts:
            return ()
        return message_boundaries(
            self._tokenizer,
            prompt,
            request.messages,
            request.tools,
            thinking=thinking,
            template_kwargs=request.template_kwargs,
        )

    def _grammar(self, request: GenerationRequest, opening: Opening, *, thinking: bool) -> Grammar | None:
        """Compile what the answer is held to, if anything."""
        forced = request.tool_choice != "auto"
        tools = _callable(request)
        parallel = request.parallel_tool_calls
        if request.constraint is not None and not forced:
            gate = self._gate(opening, thinking=thinking)
            if not tools:
                return self._grammars.constraint(request.constraint, gate)
            return self._grammars.calls_or_constraint(tools, request.constraint, parallel=parallel, gate=gate)
        if not forced and not any(tool.strict for tool in tools):
            return None
        if not tools:
            raise InvalidArgument(
                f"tool_choice {request.tool_choice!r} needs such a tool.",
                hint="Name one of the tools.",
                param="tool_choice",
            )
        gate = self._gate(opening, thinking=thinking)
        return self._grammars.tool_calls(tools, parallel=parallel, forced=forced, gate=gate)

    def _output_format(self, request: GenerationRequest, grammar: Grammar | None) -> OutputFormat:
        if request.tools:
            return self._format
        if grammar is not None and grammar.gate == Gate():  # all is the answer, also what is spelled like a marker
            return OutputFormat()
        return self._format.without_tools()

    def _reasoning_limit(self, request: GenerationRequest, *, thinking: bool) -> ReasoningLimit | None:
        """Return how the request's budget is kept, if it has one."""
        if request.reasoning_budget is None or not thinking:
            return None
        if request.reasoning_budget < 0:
            raise InvalidArgument("A budget of reasoning cannot be negative.", param="thinking")
        if not self.limits_reasoning:
            raise UnsupportedFeature(
                "How long this model reasons cannot be limited.", hint="Give no budget.", param="thinking"
            )
        return ReasoningLimit(request.reasoning_budget, self._tokenizer.wrapper.think_end_tokens[0])

    def _gate(self, opening: Opening, *, thinking: bool) -> Gate:
        """Tell when a grammar begins to bind: reasoning stays free."""
        wrapper = self._tokenizer.wrapper
        if not wrapper.has_thinking or opening is Opening.AFTER_REASONING:
            return Gate()
        single = len(wrapper.think_start_tokens) == len(wrapper.think_end_tokens) == 1
        if opening is Opening.IN_REASONING and not single:
            raise UnsupportedFeature(
                "This model's answers cannot be held to a form while it reasons.",
                hint="Turn reasoning off.",
                param="thinking",
            )
        if not single or (opening is Opening.PLAIN and not thinking):
            return Gate()
        return Gate(
            open_token=wrapper.think_start_tokens[0],
            close_token=wrapper.think_end_tokens[0],
            opened=opening is Opening.IN_REASONING,
        )

    def _opening(self, prompt: list[int], request: GenerationRequest, *, thinking: bool) -> Opening:
        """Tell where the model's text begins: templates may end with a reasoning block, opened or closed again.

        Only what the template itself puts behind the last message counts; a user may write the same markers.
        """
        wrapper = self._tokenizer.wrapper
        if not wrapper.has_thinking or max(wrapper.rfind_think_start(prompt), wrapper.rfind_think_end(prompt)) < 0:
            return Opening.PLAIN
        return self._last_marker(self._render(generation_prompt, request, thinking=thinking))

    def _last_marker(self, tail: str) -> Opening:
        """Tell what the last marker of reasoning in `tail`, with which the prompt ends, has opened or closed."""
        wrapper = self._tokenizer.wrapper
        if not wrapper.has_thinking:
            return Opening.PLAIN
        opened, closed = tail.rfind(wrapper.think_start), tail.rfind(wrapper.think_end)
        if max(opened, closed) < 0:
            return Opening.PLAIN
        return Opening.IN_REASONING if opened > closed else Opening.AFTER_REASONING


def _callable(request: GenerationRequest) -> list[Tool]:
    """Return the tools that may be called."""
    allowed = request.allowed_tools
    return [
        tool
        for tool in request.tools
        if request.tool_choice in {"auto", "required", tool.name} and (allowed is None or tool.name in allowed)
    ]


def _control_tokens(wrapper: TokenizerWrapper, output_format: OutputFormat) -> frozenset[int]:
    """Return the special tokens that are not text: all but those that the output parser looks for."""
    markers = "".join(marker for edges in output_format.transitions.values() for marker, _ in edges)
    added = wrapper.backend_tokenizer.get_added_tokens_decoder()
    special = {index for index, token in added.items() if token.special} | set(wrapper.all_special_ids)
    return frozenset(index for index in special if index not in added or added[index].content not in markers)
