"""The engine as the rest of the package sees it: load a model, prepare requests, generate, unload."""

from __future__ import annotations

import contextlib
import time
import traceback
from typing import TYPE_CHECKING, TypeVar

from lib_mlx import memory
from lib_mlx.config import EngineConfig, GenerationDefaults
from lib_mlx.engine import heap
from lib_mlx.engine.adapter_switch import AdapterSwitch
from lib_mlx.engine.assembly import new_media, new_scheduler, new_store, new_weights
from lib_mlx.engine.embedding import Embedder
from lib_mlx.engine.grounding import GroundingJob, PreparedGrounding
from lib_mlx.engine.job import Job, unloading
from lib_mlx.engine.pointing import open_pointing
from lib_mlx.engine.preparation import RequestPreparer
from lib_mlx.engine.text_embedder import TextEmbedder
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import LibMlxError
from lib_mlx.models import sharding
from lib_mlx.models.loader import check_cancelled, load_tokenizer
from lib_mlx.models.pooling import read_pooling
from lib_mlx.models.upstream_vlm import import_mlx_vlm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lib_mlx.engine.event_stream import Batch, EventStream
    from lib_mlx.engine.grounding_lane import GroundingLane
    from lib_mlx.engine.job import PreparedRequest
    from lib_mlx.engine.media_encoder import MediaEncoder
    from lib_mlx.engine.pointing import Pointing
    from lib_mlx.engine.prefix_store import PrefixStore
    from lib_mlx.engine.rank_channel import Followers
    from lib_mlx.engine.scheduler import Scheduler
    from lib_mlx.generation import GenerationRequest
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer, Weights
    from lib_mlx.models.media_reader import MediaReader
    from lib_mlx.status import EncoderState

    Prepared = PreparedRequest | PreparedGrounding
AnyJob = Job | GroundingJob
J = TypeVar("J", Job, GroundingJob)
_UNWINDING_S = 0.005  # between two looks whether an image is still being encoded
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
        media: MediaReader | None = None,
        encoder: MediaEncoder | None = None,
        pointing: Pointing | None = None,
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
            media=media,
        )
        self._encoder = encoder
        self._pointing = pointing
        self._scheduler = scheduler
        embedder = Embedder(weights.network, read_pooling(checkpoint.path))
        self._embedder = TextEmbedder(embedder, self._preparer, scheduler, self._resting)
        self._store = store
        fixed = None if pointing is None else "A GUI-Actor"  # its own lane does not wait for a change
        self.adapters = AdapterSwitch(weights.network, scheduler, config, self._forget_store, fixed=fixed)
        self._closed = self._released = False  # written by the engine thread alone

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the model can do: completion, and what it has of vision, audio, video, grounding, tools, thinking."""
        has = {
            "vision": "image" in self._preparer.reads,
            "audio": "audio" in self._preparer.reads,
            "video": "video" in self._preparer.reads and self._pointing is None,
            "grounding": self._pointing is not None,
            "tools": self._tokenizer.wrapper.has_tool_calling,
            "thinking": self.reasons,
        }
        return ("completion", *(name for name, there in has.items() if there))

    @property
    def encoders(self) -> EncoderState | None:
        """Whether the encoders' weights are in memory; None of a model without any."""
        return None if self._encoder is None else "loaded" if self._encoder.loaded else "waiting"

    def watch_encoders(self, told: Callable[[], None]) -> None:
        """Have `told` called, on the engine thread, when `encoders` changes; it returns at once and raises nothing."""
        if self._encoder is not None:
            self._encoder.told = told

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
        return self._scheduler.waiting + (self._pointing.lane.waiting if self._pointing else 0)

    @property
    def stalled(self) -> bool:
        """Whether the engine has been at one step for a minute or more; all models share it."""
        return get_worker().watchdog.stalled

    def prepare(self, request: GenerationRequest) -> Prepared:
        """Check `request` against this model and tokenise it. Takes CPU time: not for an event loop.

        Raises:
            ContextLengthExceeded: the prompt leaves no room for a token of completion.
            InvalidArgument: the chat template or the vocabulary refuses something.
            UnsupportedFeature: the model has no tools, or the form asked for cannot be guaranteed.
            ShuttingDown: the model is being unloaded.
        """
        self._refuse_if_closed()
        if self._pointing is not None and request.prompt is None:
            limits = {"context_length": self.context_length, "vocab_size": self.vocab_size}
            return self._pointing.preparer.prepare(request, **limits)
        return self._preparer.prepare(request)

    def count_prompt(self, request: GenerationRequest) -> int:
        """Return how many tokens the prompt of `request` has; raises likewise, but not if they are too many."""
        self._refuse_if_closed()
        if self._pointing is not None and request.prompt is None:
            return self._pointing.preparer.count_prompt(request)
        return self._preparer.count_prompt(request)

    def submit(self, request: Prepared, stream: EventStream) -> AnyJob:
        """Start generating; events arrive at `stream`. Returns at once with the job, to cancel it by."""
        return self.submit_choices(request, [stream])[0]

    def submit_choices(self, request: Prepared, streams: Sequence[EventStream]) -> Sequence[AnyJob]:
        """Start generating as many answers as there are streams, whose prompt is processed once; likewise."""
        if isinstance(request, PreparedGrounding):
            return self._start([GroundingJob(request, stream) for stream in streams], self._point)
        leader = Job(request, streams[0])
        others = [Job(request, stream, leader=leader, choice=at) for at, stream in enumerate(streams[1:], 1)]
        leader.followed = bool(others)
        return self._start([leader, *others], self._scheduler.add)

    def _point(self, job: GroundingJob) -> None:
        if self._pointing is None:
            raise RuntimeError("a request to another model")
        self._pointing.lane.add(job)

    def _start(self, jobs: list[J], take: Callable[[J], None]) -> list[J]:
        """Have `take` take the jobs in, on the engine thread."""

        def add() -> None:
            for job in jobs:
                if self._closed:
                    job.cancel(unloading())
                    _deliver([(job.stream, [job.fail()])])
                else:
                    take(job)

        get_worker().post(add)
        return jobs

    def cancel(self, job: AnyJob, error: LibMlxError) -> None:
        """End `job` with `Failed(error)` between two steps, whether it waits, prefills or decodes."""
        job.cancel(error)
        get_worker().post(lambda: None)  # a suspended lane looks up only when it is woken

    def set_adapter(self, name: str | None) -> None:
        """Have another adapter from the next request on, or none. Blocks until the requests under way have ended.

        A model that is suspended changes when it goes on.

        Raises:
            ModelNotFound: the model was not configured with one of that name, or its files are gone.
            CorruptModel: it does not fit; the model has none then.
            UnsupportedFeature: it holds all weights, or the model is a GUI-Actor; nothing has changed.
            ShuttingDown: the model is being unloaded.
        """
        self._refuse_if_closed()
        self.adapters.change(name).result()

    def embed(
        self, text: str | Sequence[int], *, truncate: bool = False, cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[list[float], int]:
        """Return the vector of `text` (or tokens) and the number of tokens. Blocks, also while the model is suspended.

        Others' streams go on meanwhile.

        Raises:
            ContextLengthExceeded: it is longer than the context, and `truncate` does not allow to cut it.
            InvalidArgument: it has no token, or one that is not in the vocabulary.
            UnsupportedFeature: the model has no embeddings, or is one rank's part.
            Cancelled, ShuttingDown: `cancelled` said so, or the model is being unloaded.
        """
        self._refuse_if_closed()
        return self._embedder.embed(text, truncate=truncate, cancelled=cancelled)

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
        while not get_worker().run(self._close):
            time.sleep(_UNWINDING_S)

    def abandon(self, error: LibMlxError, timeout_s: float) -> None:
        """End every request with `error`, even if the engine thread waits in vain. The model is of no use then.

        Blocks for `timeout_s` at most, seconds in which that thread may come back.
        """

        def fail() -> None:
            self._closed = True
            for lane in self._lanes:
                get_worker().discard(lane)
                lane.fail_all(error)
                _deliver(lane.step())

        try:
            get_worker().submit(fail).result(timeout_s)
        except TimeoutError:
            self._closed = True
            _deliver(self._scheduler.abandon(error))

    def _forget_store(self) -> None:
        """Keep nothing across restarts any more: the next load does not begin as the model is now."""
        self._store = None

    def _close(self) -> bool:
        """Let go of everything; False if this was called from within the encoder, which has to end first."""
        if self._released:
            return True
        if not self._closed:
            self._closed = True
            for lane in self._lanes:
                get_worker().discard(lane)
                lane.fail_all(unloading())
                _deliver(lane.step())
        if self._encoder is not None:
            if self._encoder.active:
                return False
            self._encoder.close()
        self._released = True
        self.adapters.close()
        if self._store is not None:
            self._store.save(self._scheduler.prefixes)
        for lane in self._lanes:
            lane.close()
        self._embedder.close()
        heap.release()
        return True

    @property
    def _lanes(self) -> list[Scheduler | GroundingLane]:
        return [self._scheduler, *([self._pointing.lane] if self._pointing else [])]

    def _resting(self) -> bool:
        self._refuse_if_closed()
        return self._scheduler.suspended

    def _set_suspended(self, value: bool) -> None:
        self._refuse_if_closed()
        for lane in self._lanes:
            lane.suspended = value
        if self._encoder is not None:
            self._encoder.suspend(value)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise unloading()


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
    ranks: Followers | None = None,
) -> EngineModel:
    """Load `checkpoint`: the weights on the engine thread, the tokenizer meanwhile on another. Blocks.

    Args:
        checkpoint: the directory, inspected.
        config: how to run it.
        progress: told the fraction done (0 to 1) and the stage, from several threads.
        cancelled: asked every 64 MiB.
        ranks: the other ranks, if this process is rank 0 of several.

    Raises:
        InsufficientMemory, LoadCancelled, CorruptModel, UnsupportedModel: see `lib_mlx.errors`.
        UnsupportedFeature: `kv_bits` with a model whose cache cannot be quantised.
        InvalidArgument: `prefix_cache_path` cannot be written.
    """
    worker = get_worker()
    check_cancelled(cancelled)
    memory.check_fits(checkpoint.weight_bytes // sharding.ranks(), f"The model {checkpoint.path.name!r}")
    if checkpoint.has_towers:
        progress(0.0, "importing")
        import_mlx_vlm(checkpoint)  # before, not beside the tokenizer: transformers cannot be imported by two threads
    progress(_TOKENIZER_SHARE, "weights")
    weights = worker.submit(
        new_weights,
        checkpoint,
        lambda part: progress(_TOKENIZER_SHARE + (1 - 2 * _TOKENIZER_SHARE) * part, "weights"),
        cancelled,
        config,
    )
    try:
        tokenizer = load_tokenizer(checkpoint)
        loaded, blas_name = weights.result()
        progress(1 - _TOKENIZER_SHARE, "tokenizer")
        store = new_store(checkpoint, loaded, config)
        media, encoder = new_media(checkpoint, tokenizer, loaded, config)
        pointing = open_pointing(checkpoint, tokenizer, loaded, media, encoder)
        eos = frozenset(tokenizer.wrapper.eos_token_ids)
        scheduler = worker.run(new_scheduler, checkpoint, loaded, eos, config, store, encoder, cancelled, ranks)
        model = EngineModel(
            checkpoint,
            tokenizer,
            scheduler,
            weights=loaded,
            blas_name=blas_name,
            config=config,
            store=store,
            media=media,
            encoder=encoder,
            pointing=pointing,
        )
        check_cancelled(cancelled)
        for lane in (scheduler, *([pointing.lane] if pointing else [])):
            worker.run(worker.add, lane)  # last: nothing refers to a load that did not succeed
    except BaseException as error:
        with contextlib.suppress(LibMlxError):
            weights.result()  # the engine thread still reads the checkpoint
        error.__cause__ = error.__context__ = None
        traceback.clear_frames(error.__traceback__)  # they hold what was loaded
        loaded = scheduler = model = weights = media = encoder = pointing = None  # type: ignore[assignment]
        worker.run(heap.release)
        raise
    progress(1.0, "ready")
    return model
