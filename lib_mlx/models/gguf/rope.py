"""How a GGUF file's model stretches its rotary embedding, in transformers' terms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import CorruptModel, UnsupportedModel
from lib_mlx.models.gguf.keys import shortest

if TYPE_CHECKING:
    from lib_mlx.models.gguf.file import GgufFile
    from lib_mlx.models.gguf.keys import Keys
    from lib_mlx.models.gguf.tensors import Array

ROPE_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Tensors that become part of config.json."""


def share_of(rotated: int, head_dim: int) -> float:
    """Return the part of `head_dim` that mlx-lm, which rounds down, makes `rotated` of."""
    share = rotated / head_dim
    return share if int(share * head_dim) == rotated else math.nextafter(share, 1.0)


def rope_scaling(keys: Keys, rotated: int, config: dict[str, Any]) -> dict[str, Any]:
    """Return what a model's config.json says of it, if anything; `rotated` of each head's dimensions are.

    Raises:
        UnsupportedModel: mlx-lm has none such.
        CorruptModel: a value or a tensor is missing.
    """
    kind = keys.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in keys.source.tensors:
        return {"rope_scaling": _llama3_scaling(keys, rotated, config["rope_theta"])}
    if "rope_factors_long.weight" in keys.source.tensors:
        return _longrope(keys, rotated, config["max_position_embeddings"])
    if kind == "none":
        return {}
    factor = keys.number("rope.scaling.factor")
    original = keys.get("rope.scaling.original_context_length", config["max_position_embeddings"])
    if kind == "linear":
        return {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        yarn = {"type": "yarn", "rope_type": "yarn", "factor": factor}
        return {"rope_scaling": yarn | {"original_max_position_embeddings": original}}
    raise UnsupportedModel(
        f"{keys.source.path} scales its rotary embedding by {kind!r}.",
        hint="Use the model's safetensors repository instead.",
    )


def _longrope(keys: Keys, rotated: int, context: int) -> dict[str, Any]:
    """Return phi's scaling: divisors for short and long texts, and a factor that follows from two lengths."""
    original = keys.count("rope.scaling.original_context_length")
    factors = {kind: _divisors(keys.source, f"rope_factors_{kind}.weight") for kind in ("short", "long")}
    if any(found.size != rotated // 2 for found in factors.values()):
        raise CorruptModel(
            f"{keys.source.path} has another number of rotary divisors than of dimensions.",
            hint="Fetch the file again.",
        )
    told = keys.number("rope.scaling.attn_factor", 1.0)
    if not math.isclose(told, _longrope_factor(context, original), rel_tol=1e-3):
        raise UnsupportedModel(
            f"{keys.source.path} scales attention by {told}, which does not follow from its context's length.",
            hint="Use the model's safetensors repository instead.",
        )
    scaling = {f"{kind}_factor": [shortest(value) for value in found] for kind, found in factors.items()}
    return {
        "original_max_position_embeddings": original,
        "rope_scaling": {"type": "longrope", "rope_type": "longrope", **scaling},
    }


def _divisors(source: GgufFile, name: str) -> Array:
    tensor = source.tensors.get(name)
    known = tensor is not None and tensor.type == "F32"
    return np.frombuffer(source.data(tensor), "<f4") if tensor and known else np.zeros(1)


def _llama3_scaling(keys: Keys, head_dim: int, base: float) -> dict[str, Any]:
    """Recognise Llama 3's scaling, of which the file keeps only the resulting divisors."""
    found = _divisors(keys.source, "rope_freqs.weight")
    factor = float(found.max())
    if found.size == head_dim // 2 and np.allclose(found, _llama3_divisors(base, head_dim, factor), rtol=1e-3):
        return {
            "type": "llama3",
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    raise UnsupportedModel(
        f"{keys.source.path} has rotary divisors that are not Llama 3's.",
        hint="Use the model's safetensors repository instead.",
    )


def _longrope_factor(context: int, original: int) -> float:
    """Return what phi scales queries and keys by, as mlx-lm computes it."""
    return 1.0 if context <= original else math.sqrt(1 + math.log(context / original) / math.log(max(original, 2)))


def _llama3_divisors(base: float, head_dim: int, factor: float) -> Array:
    """Compute the divisors llama.cpp writes for Llama 3.1's `rope_scaling` with its usual parameters."""
    low, high, original = 1.0, 4.0, 8192
    wavelengths = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))
