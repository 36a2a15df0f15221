"""One generator of rows on every rank: what rank 0's scheduler has it do, the others do in the same order.

The other ranks know nothing of requests. They take part in each forward pass, whose tokens rank 0 gives
(`models.sharding`), and hold the caches of their layers or heads under the numbers that rank 0 gives them. So nothing
that is decided on rank 0 (clocks, memory, samplers, grammars, cancellations) has to be the same elsewhere. Rows end by
commands only: the generator is given no end tokens and no limit.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lib_mlx.engine.serial import SerialGenerator, Token
from lib_mlx.models.kv_cache import new_cache
from lib_mlx.models.upstream import BatchGenerator, StopSequences, greedy_sampler, trim_prompt_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lib_mlx.engine.rank_channel import Followers
    from lib_mlx.engine.sampling import Processor, Sampler
    from lib_mlx.models.kv_cache import CacheKind
    from lib_mlx.models.loader import Weights

log = logging.getLogger(__name__)

_ENDLESS = 1 << 30  # tokens
_ROWS = 32  # decoded together
Command = dict[str, Any]


class HeldCache(list[Any]):
    """A row's cache, of which every rank holds its part under `key`. A copy is of the same origin."""

    key: int
    length: int
    """In tokens."""


@dataclass
class _Row:
    max_tokens: int
    matcher: Any
    made: int = 0

    def ends(self, token: int) -> str | None:
        """Count `token`; return why it is the last, if it is."""
        self.made += 1
        if self.matcher.advance(token):
            return "stop"
        return "length" if self.made >= self.max_tokens else None


def new_generator(network: Any, kind: CacheKind, rows: int) -> Any:
    """Return the generator that every rank has."""
    if not kind.batchable:
        return SerialGenerator(network)
    return BatchGenerator(
        network,
        completion_batch_size=rows,
        prefill_batch_size=rows,
        stream=mx.default_stream(mx.default_device()),
    )


def leading(weights: Weights, ranks: Followers) -> Callable[[], LeadingGenerator]:
    """Return what makes rank 0's generator."""
    return lambda: LeadingGenerator(weights.network, weights.cache, _ROWS, ranks)


class LeadingGenerator:
    """Rank 0's generator, with the part of `BatchGenerator` that the scheduler uses.

    Args:
        network: rank 0's part.
        kind: what its caches are like.
        rows: decoded together at most.
        ranks: the others; they are told and not waited for.
    """

    _keys = itertools.count()

    def __init__(self, network: Any, kind: CacheKind, rows: int, ranks: Followers) -> None:
        self.prefill_step_size = 512
        self._ranks = ranks
        self._rows: dict[int, _Row] = {}
        self._dropped: deque[int] = deque()  # caches that nothing on this rank refers to any more
        self._tell({"do": "begin", "rows": rows})
        self._generator = new_generator(network, kind, rows)

    @property
    def prompt_cache_nbytes(self) -> int:
        """What the caches of all rows take on this rank."""
        return int(self._generator.prompt_cache_nbytes)

    def insert_segments(
        self,
        segments: Sequence[list[list[int]]],
        max_tokens: Sequence[int],
        caches: Sequence[list[Any]],
        all_tokens: Sequence[list[int]],
        samplers: Sequence[Sampler],
        logits_processors: Sequence[Sequence[Processor]],
        stop_sequences: Sequence[Any],
    ) -> list[int]:
        """Take rows in, as `BatchGenerator.insert_segments` does; raises as `next`."""
        rows = []
        for parts, cache, known in zip(segments, caches, all_tokens, strict=True):
            held = (cache.key, cache.length - len(known)) if isinstance(cache, HeldCache) else None
            rows.append({"lengths": [len(part) for part in parts], "known": len(known), "cache": held})
        with self._together({"do": "insert", "rows": rows}):
            uids: list[int] = self._generator.insert_segments(
                segments,
                max_tokens=[_ENDLESS] * len(rows),
                caches=caches,
                all_tokens=all_tokens,
                samplers=samplers,
                logits_processors=logits_processors,
                stop_sequences=[StopSequences()] * len(rows),
            )
        for uid, most, stop in zip(uids, max_tokens, stop_sequences, strict=True):
            self._rows[uid] = _Row(most, stop.matcher())
        return uids

    def next(self) -> tuple[Sequence[Any], list[Token]]:
        """Advance every row on every rank; as `BatchGenerator.next`.

        Raises:
            EngineDied: this rank or another one could not; the group is of no use any more.
        """
        self._generator.prefill_step_size = self.prefill_step_size
        with self._together({"do": "next", "chunk": self.prefill_step_size}):
            prompts, made = self._generator.next()
        reasons = {row.uid: self._rows[row.uid].ends(row.token) for row in made}
        caches = self.remove([uid for uid, reason in reasons.items() if reason], return_prompt_caches=True)
        tokens = []
        for row in made:
            cache, held = caches.get(row.uid, (None, None))
            tokens.append(Token(row.uid, row.token, row.logprobs, reasons[row.uid], cache, held))
        return prompts, tokens

    def extract_cache(self, uids: Iterable[int]) -> dict[int, tuple[list[Any], list[int]]]:
        """Return the caches of rows as they are now, and the tokens they hold."""
        wanted = list(uids)
        return self._held(self._generator.extract_cache(wanted)) if wanted else {}

    def remove(self, uids: Iterable[int], return_prompt_caches: bool = False) -> dict[int, tuple[list[Any], list[int]]]:
        """Take rows out; return their caches if asked to."""
        leaving = list(uids)
        if not leaving:
            return {}
        caches = self.extract_cache(leaving) if return_prompt_caches else {}
        with self._together({"do": "remove", "uids": leaving}):
            self._generator.remove(leaving)
        for uid in leaving:
            del self._rows[uid]
        return caches

    def _held(self, caches: dict[int, Any]) -> dict[int, tuple[list[Any], list[int]]]:
        """Have every rank keep its part of `caches` for as long as something here refers to them."""
        keys: dict[int, int] = {}
        held: dict[int, tuple[list[Any], list[int]]] = {}
        for uid, (cache, tokens) in caches.items():
            kept = HeldCache(cache)
            kept.key = keys[uid] = next(self._keys)
            kept.length = len(tokens)
            weakref.finalize(kept, self._dropped.append, kept.key)
            held[uid] = (kept, tokens)
        self._tell({"do": "keep", "keys": list(keys.items())})
        return held

    @contextlib.contextmanager
    def _together(self, command: Command) -> Iterator[None]:
        """Have the others carry out `command` as the block does; raises EngineDied if the block raises.

        What one rank has done and another has not cannot be made good.
        """
        self._tell(command)
        try:
            yield
        except BaseException as error:
            log.exception("the ranks can go on no more")
            raise self._ranks.report(str(error)) from error

    def _tell(self, command: Command) -> None:
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        self._ranks.tell(command | {"drop": dropped})


class FollowingGenerator:
    """Another rank's generator, which does as it is told. Its tokens mean nothing; their number does."""

    def __init__(self, network: Any, kind: CacheKind) -> None:
        self._network = network
        self._kind = kind
        self._generator: Any = None
        self._caches: dict[int, list[Any]] = {}

    def carry_out(self, command: Command) -> None:
        """Do one of rank 0's steps. Raises whatever MLX raises: the rank is of no use then."""
        match command["do"]:
            case "begin":
                self._generator = new_generator(self._network, self._kind, command["rows"])
            case "insert":
                self._insert(command["rows"])
            case "next":
                self._generator.prefill_step_size = command["chunk"]
                self._generator.next()
            case "keep":
                self._keep(dict(command["keys"]))
            case "remove":
                self._generator.remove(command["uids"])
        for key in command["drop"]:
            del self._caches[key]

    @property
    def held(self) -> int:
        """How many caches of past rows it holds."""
        return len(self._caches)

    def _insert(self, rows: list[dict[str, Any]]) -> None:
        self._generator.insert_segments(
            [[[0] * length for length in row["lengths"]] for row in rows],
            max_tokens=[_ENDLESS] * len(rows),
            caches=[self._cache(row["cache"]) for row in rows],
            all_tokens=[[0] * row["known"] for row in rows],
            samplers=[greedy_sampler] * len(rows),
            logits_processors=[[]] * len(rows),
            stop_sequences=[StopSequences()] * len(rows),
        )

    def _cache(self, held: list[int] | None) -> list[Any]:
        if held is None:
            return new_cache(self._network, self._kind.bits)
        key, surplus = held
        cache = copy.deepcopy(self._caches[key])
        if surplus:
            trim_prompt_cache(cache, surplus)
        return cache

    def _keep(self, keys: dict[int, int]) -> None:
        for uid, (cache, _) in self._generator.extract_cache(list(keys)).items():
            mx.eval([layer.state for layer in cache])  # else it holds on to the whole batch it was cut from
            self._caches[keys[uid]] = cache
