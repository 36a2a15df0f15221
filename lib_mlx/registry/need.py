"""How much memory a model will take, told from its files before it is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import InsufficientMemory
from lib_mlx.models import checkpoint, store

if TYPE_CHECKING:
    from lib_mlx.registry.slot import ModelSpec

_TOKENS = 4096  # of cache, where the context is not shorter
_VALUE_BYTES = 2


def estimate_need(spec: ModelSpec) -> int:
    """Return the bytes of the weights, from the safetensors headers, and of the cache of one conversation.

    Those of a draft model, too.

    Raises:
        ModelNotFound, CorruptModel, UnsupportedModel: there is no such model, or none that could be loaded.
    """
    draft = spec.config.draft_model_path
    if draft is not None:
        alone = replace(spec, config=spec.config.model_copy(update={"draft_model_path": None}))
        return estimate_need(alone) + estimate_need(replace(alone, path=draft, revision=None))
    if (
        spec.path.lower().endswith(".gguf") and Path(spec.path).expanduser().is_file()
    ):  # converted at its first load, tensor by tensor as it is
        return Path(spec.path).expanduser().stat().st_size
    inspected = checkpoint.inspect(
        store.resolve(spec.path, spec.revision), trust_remote_code=spec.config.trust_remote_code
    )
    context = spec.config.context_length or inspected.context_length or _TOKENS
    return inspected.weight_bytes + min(context, _TOKENS) * _bytes_per_token(inspected.config)


def too_large(spec: ModelSpec, need: int, room: int, limit: int | None) -> InsufficientMemory:
    """Return the error of a model that needs more bytes than there is room for."""
    said = "no limit is set" if limit is None else f"the limit is {limit / 1e9:.2f} GB"
    return InsufficientMemory(
        f"The model {spec.id!r} needs about {need / 1e9:.2f} GB; {max(0, room) / 1e9:.2f} GB are available, "
        f"and {said}.",
        hint="Unload models that are in use or pinned, raise memory_limit_bytes, or use a smaller model.",
        param="model",
    )


def _bytes_per_token(config: dict[str, Any]) -> int:
    """Return the bytes of keys and values of a token; 0 for an architecture that does not say so in the usual way."""
    config = config.get("text_config") or config
    heads = config.get("num_attention_heads") or 0
    head_size = config.get("head_dim") or (config.get("hidden_size", 0) // heads if heads else 0)
    return int(2 * config.get("num_hidden_layers", 0) * (config.get("num_key_value_heads") or heads) * head_size) * (
        _VALUE_BYTES
    )
