"""From a request to what the engine runs: rendered, tokenised and checked against one model. No MLX; any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from lib_mlx.engine.detokenizer import token_text
from lib_mlx.engine.grammar import Gate, GrammarCompiler
from lib_mlx.engine.job import PreparedRequest
from lib_mlx.engine.output_format import output_format
from lib_mlx.engine.output_parser import Opening
from lib_mlx.engine.sampling import resolve_sampling
from lib_mlx.errors import ContextLengthExceeded, CorruptModel, InvalidArgument, UnsupportedFeature
from lib_mlx.models.chat_template import generation_prompt, message_boundaries, render_prompt, tool_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from lib_mlx.engine.grammar import Grammar
    from lib_mlx.engine.output_parser import OutputFormat
    from lib_mlx.generation import GenerationRequest, Tool
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer

T = TypeVar("T")


class RequestPreparer:
    """Prepares the requests of one model.

    Args:
        checkpoint: for its default sampling.
        tokenizer: the checkpoint's.
        vocab_size: token ids are below it.
        context_length: the most tokens of prompt and completion together.
        thinking: whether templates may open a reasoning block by default.
        cuts_prompts: whether to find the ends of messages in prompts, where their caches are kept.
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
    ) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._thinking = thinking
        self._cuts_prompts = cuts_prompts
        self._format = output_format(tokenizer.wrapper)
        self._grammars = GrammarCompiler(tokenizer, self._format, vocab_size)
        self._hidden = _control_tokens(tokenizer.wrapper, self._format)
        self._text = token_text(tokenizer.wrapper.backend_tokenizer, tokenizer.wrapper.decode)

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Check `request` and tokenise it. Takes CPU time: not for an event loop.

        Raises:
            ContextLengthExceeded: the prompt leaves no room for a token of completion.
            InvalidArgument: the chat template or the vocabulary refuses something.
            UnsupportedFeature: the model has no tools, or the form asked for cannot be guaranteed.
        """
        self._refuse_impossible(request)
        thinking = self._thinking if request.thinking is None else request.thinking
        prompt = self._render(render_prompt, request, thinking=thinking)
        room = self._room_after(prompt)
        opening = self._opening(prompt, request, thinking=thinking)
        return PreparedRequest(
            prompt=prompt,
            max_tokens=min(request.max_tokens or room, room),
            sampling=resolve_sampling(request.sampling, self._checkpoint.generation_config, self._vocab_size),
            stop=request.stop,
            tools=[tool_json(tool) for tool in request.tools] or None,
            parallel_tool_calls=request.parallel_tool_calls,
            output_format=self._format if request.tools else self._format.without_tools(),
            opening=opening,
            allowed_tools=request.allowed_tools,
            text=self._text,
            hidden=self._hidden,
            grammar=self._grammar(request, opening, thinking=thinking),
            logprobs=request.logprobs,
            cache_salt=request.cache_salt,
            boundaries=self._boundaries(prompt, request, thinking=thinking),
        )

    def _refuse_impossible(self, request: GenerationRequest) -> None:
        if request.max_tokens is not None and request.max_tokens < 1:
            raise InvalidArgument(f"max_tokens is {request.max_tokens}; it must be at least 1.", param="max_tokens")
        if request.logprobs is not None and not 0 <= request.logprobs <= self._vocab_size:
            raise InvalidArgument(
                f"{request.logprobs} log-probabilities were asked for; the vocabulary has {self._vocab_size} tokens.",
                param="top_logprobs",
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
        tail = self._render(generation_prompt, request, thinking=thinking)
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
