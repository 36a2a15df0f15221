"""The engine as the rest of the package sees it: load a model, prepare requests, generate, unload."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING, TypeVar

import mlx.core as mx

from lib_mlx import memory
from lib_mlx.config import EngineConfig
from lib_mlx.engine import blas
from lib_mlx.engine.detokenizer import token_text
from lib_mlx.engine.grammar import Gate, GrammarCompiler
from lib_mlx.engine.job import Job, PreparedRequest
from lib_mlx.engine.output_format import output_format
from lib_mlx.engine.output_parser import Opening
from lib_mlx.engine.sampling import resolve_sampling
from lib_mlx.engine.scheduler import Scheduler
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import (
    ContextLengthExceeded,
    CorruptModel,
    InsufficientMemory,
    InvalidArgument,
    LibMlxError,
    ShuttingDown,
    UnsupportedFeature,
)
from lib_mlx.models.chat_template import generation_prompt, message_boundaries, render_prompt, tool_json
from lib_mlx.models.loader import check_cancelled, load_tokenizer, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from lib_mlx.engine.event_stream import Batch, EventStream
    from lib_mlx.engine.grammar import Grammar
    from lib_mlx.engine.output_parser import OutputFormat
    from lib_mlx.generation import GenerationRequest
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer, Weights

T = TypeVar("T")

_PREFIX_BYTES = 2 << 30  # of KV kept of past requests, if the machine has ten times as much memory
_UNKNOWN_CONTEXT = 8192  # tokens, for a checkpoint that states no context length
_TOKENIZER_SHARE = 0.1  # of the progress of a load


class EngineModel:
    """A model in memory, ready to generate. Every method may be called from any thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: LoadedTokenizer,
        scheduler: Scheduler,
        *,
        weights: Weights,
        blas_name: str | None,
        config: EngineConfig,
    ) -> None:
        own = checkpoint.context_length or _UNKNOWN_CONTEXT
        self.context_length = min(own, config.context_length) if config.context_length else own
        """The most tokens a prompt and its completion may have together."""
        self.vocab_size = weights.vocab_size
        self.device = weights.device
        self.weights = weights.kind
        self.blas = blas_name
        """What was put in place of MLX's own BLAS; None if MLX runs as shipped."""
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._thinking = config.thinking_enabled
        self._cuts_prompts = not weights.cache.sliceable
        self._scheduler = scheduler
        self._format = output_format(tokenizer.wrapper)
        self._grammars = GrammarCompiler(tokenizer, self._format, self.vocab_size)
        self._hidden = _control_tokens(tokenizer.wrapper, self._format)
        self._text = token_text(tokenizer.wrapper.backend_tokenizer, tokenizer.wrapper.decode)
        self._closed = False  # written by the engine thread alone

    @property
    def stalled(self) -> bool:
        """Whether the engine has been at one step for a minute or more; all models share it."""
        return get_worker().watchdog.stalled

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Check `request` against this model and tokenise it. Takes CPU time: not for an event loop.

        Raises:
            ContextLengthExceeded: the prompt leaves no room for a token of completion.
            InvalidArgument: the chat template or the vocabulary refuses something.
            UnsupportedFeature: the model has no tools, or the form asked for cannot be guaranteed.
            ShuttingDown: the model is being unloaded.
        """
        self._refuse_if_closed()
        self._refuse_impossible(request)
        thinking = self._thinking if request.thinking is None else request.thinking
        prompt = self._render(render_prompt, request, thinking=thinking)
        room = self._room_after(prompt)
        opening = self._opening(prompt, request, thinking=thinking)
        return PreparedRequest(
            prompt=prompt,
            max_tokens=min(request.max_tokens or room, room),
            sampling=resolve_sampling(request.sampling, self._checkpoint.generation_config, self.vocab_size),
            stop=request.stop,
            tools=[tool_json(tool) for tool in request.tools] or None,
            parallel_tool_calls=request.parallel_tool_calls,
            output_format=self._format if request.tools else self._format.without_tools(),
            opening=opening,
            text=self._text,
            hidden=self._hidden,
            grammar=self._grammar(request, opening, thinking=thinking),
            logprobs=request.logprobs,
            cache_salt=request.cache_salt,
            boundaries=self._boundaries(prompt, request, thinking=thinking),
        )

    def submit(self, request: PreparedRequest, stream: EventStream) -> Job:
        """Start generating; events arrive at `stream`. Returns at once with the job, to cancel it by."""
        return self.submit_choices(request, [stream])[0]

    def submit_choices(self, request: PreparedRequest, streams: Sequence[EventStream]) -> list[Job]:
        """Start generating as many answers as there are streams, whose prompt is processed once; likewise."""
        leader = Job(request, streams[0])
        others = [Job(request, stream, leader=leader, choice=at) for at, stream in enumerate(streams[1:], 1)]
        leader.followed = bool(others)
        jobs = [leader, *others]

        def add() -> None:
            for job in jobs:
                if self._closed:
                    job.cancel(_unloading())
                    _deliver([(job.stream, [job.fail()])])
                else:
                    self._scheduler.add(job)

        get_worker().post(add)
        return jobs

    def cancel(self, job: Job, error: LibMlxError) -> None:
        """End `job` with `Failed(error)` between two steps, whether it waits, prefills or decodes."""
        job.cancel(error)
        get_worker().post(lambda: None)  # a suspended lane looks up only when it is woken

    def suspend(self) -> None:
        """Evaluate nothing more until `resume`; requests wait. Returns when the running step has ended.

        Raises:
            ShuttingDown: the model is being unloaded.
        """
        get_worker().run(self._set_suspended, True)

    def resume(self) -> None:
        """Go on where `suspend` stopped; raises likewise."""
        get_worker().run(self._set_suspended, False)

    def unload(self) -> None:
        """End every request and give the memory back. Requests that come later end with `shutting_down`."""
        get_worker().run(self._close)

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        get_worker().discard(self._scheduler)
        self._scheduler.fail_all(_unloading())
        _deliver(self._scheduler.step())
        self._scheduler.close()
        memory.release()

    def _set_suspended(self, value: bool) -> None:
        self._refuse_if_closed()
        self._scheduler.suspended = value

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise _unloading()

    def _refuse_impossible(self, request: GenerationRequest) -> None:
        if request.max_tokens is not None and request.max_tokens < 1:
            raise InvalidArgument(f"max_tokens is {request.max_tokens}; it must be at least 1.", param="max_tokens")
        if request.logprobs is not None and not 0 <= request.logprobs <= self.vocab_size:
            raise InvalidArgument(
                f"{request.logprobs} log-probabilities were asked for; the vocabulary has {self.vocab_size} tokens.",
                param="top_logprobs",
            )
        if request.tools and not self._tokenizer.wrapper.has_tool_calling:
            raise UnsupportedFeature(
                "This model has no tool calls.", hint="Leave the tools out, or use another model.", param="tools"
            )

    def _room_after(self, prompt: list[int]) -> int:
        """Return how many tokens the context leaves for the completion; at least one, or the prompt is refused."""
        room = self.context_length - len(prompt)
        if room < 1:
            raise ContextLengthExceeded(
                f"The prompt has {len(prompt)} tokens; this model's context holds {self.context_length}, "
                "with at least one for the completion.",
                hint="Shorten the messages or the tools.",
                param="messages",
            )
        if not prompt or not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
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
        if request.constraint is not None:
            if request.tools:
                raise UnsupportedFeature(
                    "A form of the answer and tools cannot be promised together.",
                    hint="Ask for one of them.",
                    param=request.constraint.param,
                )
            return self._grammars.constraint(request.constraint, self._gate(opening, thinking=thinking))
        if not forced and not any(tool.strict for tool in request.tools):
            return None
        tools = [tool for tool in request.tools if request.tool_choice in {"auto", "required", tool.name}]
        if not tools:
            raise InvalidArgument(
                f"tool_choice {request.tool_choice!r} needs such a tool.",
                hint="Name one of the tools.",
                param="tool_choice",
            )
        gate = self._gate(opening, thinking=thinking)
        return self._grammars.tool_calls(tools, parallel=request.parallel_tool_calls, forced=forced, gate=gate)

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


def _control_tokens(wrapper: TokenizerWrapper, output_format: OutputFormat) -> frozenset[int]:
    """Return the special tokens that are not text: all but those that the output parser looks for."""
    markers = "".join(marker for edges in output_format.transitions.values() for marker, _ in edges)
    added = wrapper.backend_tokenizer.get_added_tokens_decoder()
    special = {index for index, token in added.items() if token.special} | set(wrapper.all_special_ids)
    return frozenset(index for index in special if index not in added or added[index].content not in markers)


def _unloading() -> ShuttingDown:
    return ShuttingDown("The model is being unloaded.", hint="Load it again.")


def _deliver(deliveries: list[tuple[EventStream, Batch]]) -> None:
    for stream, events in deliveries:
        with contextlib.suppress(RuntimeError):  # the receiver's loop is closed: nobody is reading
            stream.outlet.post([(stream, events)])


def load(
    checkpoint: Checkpoint,
    config: EngineConfig = EngineConfig(),  # noqa: B008 - immutable
    *,
    progress: Callable[[float, str], None] = lambda _fraction, _stage: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> EngineModel:
    """Load `checkpoint`: the weights on the engine thread, the tokenizer meanwhile on another. Blocks.

    Args:
        checkpoint: the directory, inspected.
        config: how to run it.
        progress: told the fraction done (0 to 1) and the stage, from several threads.
        cancelled: asked every 64 MiB.

    Raises:
        InsufficientMemory, LoadCancelled, CorruptModel, UnsupportedModel: see `lib_mlx.errors`.
    """
    worker = get_worker()
    check_cancelled(cancelled)
    memory.check_fits(checkpoint.weight_bytes, f"The model {checkpoint.path.name!r}")
    progress(_TOKENIZER_SHARE, "weights")
    weights = worker.submit(
        _load_weights,
        checkpoint,
        lambda part: progress(_TOKENIZER_SHARE + (1 - 2 * _TOKENIZER_SHARE) * part, "weights"),
        cancelled,
        config,
    )
    try:
        tokenizer = load_tokenizer(checkpoint)
        loaded, blas_name = weights.result()
        progress(1 - _TOKENIZER_SHARE, "tokenizer")
        scheduler = worker.run(_new_scheduler, loaded, frozenset(tokenizer.wrapper.eos_token_ids), config)
        model = EngineModel(
            checkpoint,
            tokenizer,
            scheduler,
            weights=loaded,
            blas_name=blas_name,
            config=config,
        )
        check_cancelled(cancelled)
        worker.run(worker.add, scheduler)  # last: nothing refers to a load that did not succeed
    except BaseException as error:
        with contextlib.suppress(LibMlxError):
            weights.result()  # the engine thread still reads the checkpoint
        error.__cause__ = error.__context__ = None
        traceback.clear_frames(error.__traceback__)  # they hold what was loaded
        loaded = scheduler = model = weights = None  # type: ignore[assignment]
        worker.run(memory.release)
        raise
    progress(1.0, "ready")
    return model


def _load_weights(
    checkpoint: Checkpoint,
    progress: Callable[[float], None],
    cancelled: Callable[[], bool],
    config: EngineConfig,
) -> tuple[Weights, str | None]:
    blas_name = None
    if mx.default_device() == mx.cpu:
        # On the CPU, MLX compiles fused kernels by running g++ in a world-writable /tmp/mlx, through system(),
        # which interrupts the host's system calls.
        mx.disable_compile()
        blas_name = blas.bind()

    def breathe() -> bool:
        get_worker().breathe()  # other models' streams go on meanwhile
        return cancelled()

    weights = load_weights(checkpoint, progress, breathe, config.cpu_weights, config.kv_bits)
    if config.memory_limit_bytes is not None and weights.nbytes >= config.memory_limit_bytes:
        raise InsufficientMemory(
            f"The weights take {weights.nbytes / 1e9:.2f} GB, the limit is {config.memory_limit_bytes / 1e9:.2f} GB.",
            hint="Raise memory_limit_bytes, set cpu_weights to 'quantized', or use a smaller model.",
            param="memory_limit_bytes",
        )
    return weights, blas_name


def _new_scheduler(weights: Weights, eos: frozenset[int], config: EngineConfig) -> Scheduler:
    limit, prefix_bytes = config.memory_limit_bytes, config.prefix_cache_bytes
    return Scheduler(
        weights.network,
        eos,
        weights.cache,
        prefill_chunk=64 if mx.default_device() == mx.cpu else 512,  # tokens: some 0.1 s of work either way
        prefix_bytes=min(_PREFIX_BYTES, memory.total_bytes() // 10) if prefix_bytes is None else prefix_bytes,
        kv_bytes=None if limit is None else limit - weights.nbytes,
    )
