"""Speculation as a model's configuration asks for it. Engine thread only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lib_mlx import memory
from lib_mlx.engine.drafts import DraftModel, PromptLookup
from lib_mlx.engine.speculation import SpeculativeGenerator
from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.models import store
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.kv_cache import Footprint
from lib_mlx.models.loader import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.config import EngineConfig
    from lib_mlx.engine.drafts import Draft
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import Weights


@dataclass(frozen=True)
class Speculation:
    """How a model guesses."""

    new_batch: Callable[[], SpeculativeGenerator]
    nbytes: int
    """What the draft model takes in memory."""
    row: Footprint
    """What its cache takes of each row."""


def speculation(
    checkpoint: Checkpoint, weights: Weights, config: EngineConfig, cancelled: Callable[[], bool]
) -> Speculation | None:
    """Return how a model guesses, if it is to; loads the draft model. `cancelled` is asked between slices of that.

    Raises:
        UnsupportedFeature: the model's cache cannot be cut, or it reads more than text.
        InvalidArgument: both ways were asked for, or the draft model has other tokens.
        LibMlxError: the draft model cannot be loaded.
    """
    named = "draft_model_path" if config.draft_model_path else "prompt_lookup"
    if not config.prompt_lookup and not config.draft_model_path:
        return None
    if config.prompt_lookup and config.draft_model_path:
        raise InvalidArgument(
            "'prompt_lookup' and 'draft_model_path' are two ways to guess.", hint="Choose one.", param=named
        )
    if weights.vision is not None or not weights.cache.sliceable:
        raise UnsupportedFeature(
            "Tokens cannot be guessed for this model: its cache cannot be cut back, or it reads more than text.",
            hint=f"Leave {named} out.",
            param=named,
        )
    new_draft: Callable[[], Draft] = PromptLookup
    nbytes, row = 0, Footprint()
    if config.draft_model_path:
        draft = _draft_weights(checkpoint, weights, config, cancelled)
        new_draft, nbytes, row = partial(DraftModel, draft.network), draft.nbytes, draft.cache.row
    return Speculation(lambda: SpeculativeGenerator(weights.network, new_draft, config.draft_tokens), nbytes, row)


def _draft_weights(
    checkpoint: Checkpoint, weights: Weights, config: EngineConfig, cancelled: Callable[[], bool]
) -> Weights:
    smaller = inspect(store.resolve(str(config.draft_model_path)), trust_remote_code=config.trust_remote_code)
    if _vocabulary(smaller) != _vocabulary(checkpoint):
        raise InvalidArgument(
            f"The draft model {smaller.path.name!r} has other tokens.",
            hint="Use a smaller model of the same family.",
            param="draft_model_path",
        )
    memory.check_fits(smaller.weight_bytes, f"The draft model {smaller.path.name!r}")
    loaded = load_weights(smaller, lambda _: None, cancelled, config.cpu_weights)
    if loaded.vision is not None or not loaded.cache.sliceable or loaded.vocab_size != weights.vocab_size:
        raise UnsupportedFeature(
            f"{smaller.path.name!r} cannot be a draft model.",
            hint="Use one that reads text alone.",
            param="draft_model_path",
        )
    return loaded


def _vocabulary(checkpoint: Checkpoint) -> Any:
    """Return what tells tokenizers apart."""
    file = checkpoint.path / "tokenizer.json"
    if not file.is_file():
        others = (checkpoint.path / name for name in ("tokenizer.model", "vocab.json"))
        return [other.read_bytes() for other in others if other.is_file()]
    known = json.loads(file.read_bytes())
    return known["model"].get("vocab"), [(token["id"], token["content"]) for token in known.get("added_tokens") or ()]
