"""What a model keeps of the tokens it has read: one object of mlx-lm's per layer. Engine thread only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import UnsupportedFeature
from lib_mlx.models.upstream import can_trim_prompt_cache, make_prompt_cache

if TYPE_CHECKING:
    from collections.abc import Iterable

KVCache = list[Any]
"""One object per layer."""

_GROUP_SIZE = 32  # values that share a scale when keys and values are quantised; divides every usual head's size
_STEP = 256  # tokens by which mlx-lm's caches grow


@dataclass(frozen=True)
class Footprint:
    """The bytes of one row's cache, by its length in tokens."""

    per_token: int = 0
    windows: tuple[tuple[int, int], ...] = ()
    """(bytes per token, tokens kept at most) of rotating caches."""
    fixed: int = 0
    """What does not grow: the state of recurrent layers."""

    def __add__(self, other: Footprint) -> Footprint:
        """Return that of both caches together."""
        return Footprint(self.per_token + other.per_token, self.windows + other.windows, self.fixed + other.fixed)

    def of(self, tokens: int) -> int:
        """Return the bytes of a row of `tokens` at most: a cache grows by whole steps from wherever it is full."""
        held = tokens + _STEP - 1
        return self.fixed + held * self.per_token + sum(size * min(held, most) for size, most in self.windows)


@dataclass(frozen=True)
class CacheKind:
    """What can be done with a model's caches."""

    row: Footprint
    batchable: bool
    """Whether rows can be decoded together."""
    sliceable: bool
    """Whether a cache can be cut back to fewer tokens, however long it is."""
    bits: int | None = None
    """Per value, if keys and values are quantised."""


def new_cache(network: Any, bits: int | None = None) -> KVCache:
    """Return an empty cache for one row, its keys and values quantised to `bits` if given.

    Raises:
        UnsupportedFeature: a layer's cache cannot be quantised: those of sliding windows and recurrent layers.
    """
    cache: KVCache = make_prompt_cache(network)
    if bits is None:
        return cache
    try:
        return [layer.to_quantized(group_size=_GROUP_SIZE, bits=bits) for layer in cache]
    except (AttributeError, NotImplementedError):
        raise cannot_quantise(bits) from None


def cannot_quantise(bits: int) -> UnsupportedFeature:
    """Return the error of a model whose cache cannot be quantised."""
    return UnsupportedFeature(
        f"The cache of this model cannot be kept in {bits} bits.", hint="Leave kv_bits out.", param="kv_bits"
    )


def cache_kind(cache: KVCache, bits: int | None = None) -> CacheKind:
    """Examine a `cache` that has taken in a token or more."""
    layers = list(_flat(cache))
    row = _footprint(layers)
    return CacheKind(
        row=row,
        batchable=all(hasattr(layer, "merge") for layer in layers),
        sliceable=not row.windows and bool(can_trim_prompt_cache(cache)),
        bits=bits,
    )


def _footprint(layers: Iterable[Any]) -> Footprint:
    per_token = fixed = 0
    windows: dict[int, int] = {}
    for layer in layers:
        keys = getattr(layer, "keys", None)
        if keys is None:
            fixed += 0 if layer.empty() else layer.nbytes
            continue
        allocated = (keys[0] if isinstance(keys, (tuple, list)) else keys).shape[2]
        size = layer.nbytes // allocated
        if most := getattr(layer, "max_size", None):
            windows[most] = windows.get(most, 0) + size
        else:
            per_token += size
    return Footprint(per_token, tuple((size, most) for most, size in windows.items()), fixed)


def _flat(cache: Iterable[Any]) -> Iterable[Any]:
    for layer in cache:
        nested = getattr(layer, "caches", None)
        yield from _flat(nested) if nested is not None else [layer]
