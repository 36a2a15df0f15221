"""The engine as the rest of the package sees it: load a model, prepare requests, generate, unload."""

from __future__ import annotations

import contextlib
import time
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx

from lib_mlx import memory
from lib_mlx.config import EngineConfig, GenerationDefaults
from lib_mlx.engine import device, heap
from lib_mlx.engine.embedding import CHUNK, Embedder
from lib_mlx.engine.job import Job
from lib_mlx.engine.preparation import RequestPreparer
from lib_mlx.engine.scheduler import Scheduler
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import Cancelled, InsufficientMemory, LibMlxError, ShuttingDown
from lib_mlx.models.loader import check_cancelled, load_tokenizer, load_weights
from lib_mlx.models.pooling import read_pooling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lib_mlx.engine.event_stream import Batch, EventStream
    from lib_mlx.engine.job import PreparedRequest
    from lib_mlx.engine.prefix_store import PrefixStore
    from lib_mlx.generation import GenerationRequest
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer, Weights

T = TypeVar("T")
_SUSPENDED_S = 0.1  # between two looks whether a model is still suspended
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
        store: PrefixStore | None = None,
    ) -> None:
        own = checkpoint.context_length or _UNKNOWN_CONTEXT
        self.context_length = min(own, config.context_length) if config.context_length else own
        """The most tokens a prompt and its completion may have together."""
        self.vocab_size = weights.vocab_size
        self.device = weights.device
        self.weights = weights.kind
        self.weight_bytes = weights.nbytes
        self.blas = blas_name
        """What was put in place of MLX's own BLAS; None if MLX runs as shipped."""
        self._tokenizer = tokenizer
        self._preparer = RequestPreparer(
            checkpoint,
            tokenizer,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            thinking=config.thinking_enabled,
            cuts_prompts=not weights.cache.sliceable,
            generation=config.generation or GenerationDefaults(),
        )
        self._scheduler = scheduler
        self._embedder = Embedder(weights.network, read_pooling(checkpoint.path))
        self._store = store
        self._closed = False  # written by the engine thread alone

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the model can do: completion, and of tools and thinking what its tokenizer and template show."""
        tools = ("tools",) if self._tokenizer.wrapper.has_tool_calling else ()
        return ("completion", *tools, *(("thinking",) if self.reasons else ()))

    @property
    def reasons(self) -> bool:
        """Whether the model marks its reasoning, so that it can be told from the answer."""
        return self._preparer.reasons

    @property
    def limits_reasoning(self) -> bool:
        """Whether a budget of reasoning can be kept."""
        return self._preparer.limits_reasoning

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn. Any thread."""
        return self._scheduler.waiting

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
        return self._preparer.prepare(request)

    def count_prompt(self, request: GenerationRequest) -> int:
        """Return how many tokens the prompt of `request` has; raises likewise, but not if they are too many."""
        self._refuse_if_closed()
        return self._preparer.count_prompt(request)

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

    def embed(
        self, text: str | Sequence[int], *, truncate: bool = False, cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[list[float], int]:
        """Return the vector of `text` (or tokens) and the number of tokens. Blocks, also while the model is suspended.

        Others' streams go on meanwhile.

        Raises:
            ContextLengthExceeded: it is longer than the context, and `truncate` does not allow to cut it.
            InvalidArgument: it has no token, or one that is not in the vocabulary.
            UnsupportedFeature: the model has no embeddings.
            Cancelled, ShuttingDown: `cancelled` said so, or the model is being unloaded.
        """
        self._refuse_if_closed()
        tokens = self._preparer.encode(text, truncate=truncate)
        embedding = self._evaluate(cancelled, self._embedder.begin)
        try:
            for at in range(0, len(tokens), CHUNK):
                self._evaluate(cancelled, self._embedder.take, embedding, tokens[at : at + CHUNK])
            return self._evaluate(cancelled, self._embedder.finish, embedding), len(tokens)
        finally:
            get_worker().run(embedding.clear)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, special ones included."""
        return self._preparer.decode(tokens)

    @property
    def suspended(self) -> bool:
        """Whether nothing is evaluated."""
        return self._scheduler.suspended

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
        if self._store is not None:
            self._store.save(self._scheduler.prefixes)
        self._scheduler.close()
        self._embedder.close()
        heap.release()

    def _evaluate(self, cancelled: Callable[[], bool], work: Callable[..., T], *args: Any) -> T:
        """Call `work` on the engine thread, when the model is not suspended."""

        def attempt() -> tuple[T] | None:
            self._refuse_if_closed()
            return None if self._scheduler.suspended else (work(*args),)

        while not cancelled():
            done = get_worker().run(attempt)
            if done is not None:
                return done[0]
            time.sleep(_SUSPENDED_S)
        raise Cancelled("The request was cancelled.")

    def _set_suspended(self, value: bool) -> None:
        self._refuse_if_closed()
        self._scheduler.suspended = value

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise _unloading()


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
        UnsupportedFeature: `kv_bits` with a model whose cache cannot be quantised.
        InvalidArgument: `prefix_cache_path` cannot be written.
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
        store = _open_store(checkpoint, loaded, config)
        scheduler = worker.run(_new_scheduler, loaded, frozenset(tokenizer.wrapper.eos_token_ids), config, store)
        model = EngineModel(
            checkpoint,
            tokenizer,
            scheduler,
            weights=loaded,
            blas_name=blas_name,
            config=config,
            store=store,
        )
        check_cancelled(cancelled)
        worker.run(worker.add, scheduler)  # last: nothing refers to a load that did not succeed
    except BaseException as error:
        with contextlib.suppress(LibMlxError):
            weights.result()  # the engine thread still reads the checkpoint
        error.__cause__ = error.__context__ = None
        traceback.clear_frames(error.__traceback__)  # they hold what was loaded
        loaded = scheduler = model = weights = None  # type: ignore[assignment]
        worker.run(heap.release)
        raise
    progress(1.0, "ready")
    return model


def _load_weights(
    checkpoint: Checkpoint,
    progress: Callable[[float], None],
    cancelled: Callable[[], bool],
    config: EngineConfig,
) -> tuple[Weights, str | None]:
    blas_name = device.set_up()

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


def _open_store(checkpoint: Checkpoint, weights: Weights, config: EngineConfig) -> PrefixStore | None:
    if config.prefix_cache_path is None:
        return None
    from lib_mlx.engine.prefix_store import open_store

    return open_store(config.prefix_cache_path, checkpoint, weights.kind, weights.device, config.kv_bits)


def _new_scheduler(weights: Weights, eos: frozenset[int], config: EngineConfig, store: PrefixStore | None) -> Scheduler:
    prefix_bytes = config.prefix_cache_bytes
    if prefix_bytes is None:
        prefix_bytes = min(_PREFIX_BYTES, memory.total_bytes() // 10)
    kv_bytes = None
    if config.memory_limit_bytes is not None:
        kv_bytes = config.memory_limit_bytes - weights.nbytes
        prefix_bytes = min(prefix_bytes, kv_bytes)
    scheduler = Scheduler(
        weights.network,
        eos,
        weights.cache,
        prefill_rate=256 if mx.default_device() == mx.cpu else 4096,
        prefix_bytes=prefix_bytes,
        kv_bytes=kv_bytes,
    )
    if store is not None:
        store.load(scheduler.prefixes)
    return scheduler
