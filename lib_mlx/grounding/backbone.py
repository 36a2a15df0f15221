"""The one place that looks into mlx-vlm's language models of Qwen (pinned to 0.7; tests/grounding/test_actor.py).

The head needs what a language model does not show: the hidden states that it ends with. Engine thread only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lib_mlx.models.kv_cache import KVCache
    from lib_mlx.models.vision_network import VisionNetwork


@dataclass(frozen=True)
class Embedded:
    """A prompt with an image, ready for the language model."""

    values: mx.array
    """(1, tokens, width)."""
    positions: mx.array
    """(3, 1, tokens): in time, down and across."""
    delta: int
    """Add it to a later token's index to get its position: an image takes fewer positions than tokens."""


class Backbone:
    """A Qwen2-VL or Qwen2.5-VL without its vision tower.

    Args:
        network: with that language model.
    """

    def __init__(self, network: VisionNetwork) -> None:
        self._network = network
        self._inner = network.language.model

    def new_cache(self) -> KVCache:
        """Return an empty cache for one prompt."""
        return self._network.make_cache()

    def embed(self, tokens: Sequence[int], features: mx.array, grid: tuple[int, int, int]) -> Embedded:
        """Put an image's features among the tokens' embeddings.

        Args:
            tokens: the prompt's, with one image token for each feature, side by side.
            features: (merged patches, width), what the vision tower made of the image.
            grid: of its patches: 1, rows, columns.
        """
        texts = self._inner.embed_tokens(mx.array(list(tokens)))
        begin = tokens.index(self._network.placeholders["image"])
        end = begin + features.shape[0]
        values = mx.concatenate([texts[:begin], features.astype(texts.dtype), texts[end:]])[None]
        positions, delta = self._network.places(tokens, [grid])
        if positions is None:
            raise TypeError("the network does not place tokens in height and width")
        return Embedded(values, mx.array(positions)[:, None], delta)

    def states(self, embedded: Embedded, start: int, end: int, cache: KVCache) -> mx.array:
        """Process a stretch of the prompt; returns the hidden states after the final norm: (tokens, width)."""
        values = embedded.values[:, start:end]
        positions = embedded.positions[..., start:end]
        found: mx.array = self._inner(None, inputs_embeds=values, cache=cache, position_ids=positions)[0]
        mx.eval(found, [layer.state for layer in cache])
        return found

    def next_state(self, token: int, position: int, cache: KVCache) -> mx.array:
        """Process one more token at its index plus `Embedded.delta`; returns its state: (1, width)."""
        positions = mx.full((3, 1, 1), position)
        found: mx.array = self._inner(mx.array([[token]]), cache=cache, position_ids=positions)[0]
        return found

    def logits(self, states: mx.array) -> mx.array:
        """Return (tokens, vocabulary) for hidden states."""
        language: Any = self._network.language
        tied = language.args.tie_word_embeddings
        logits: mx.array = self._inner.embed_tokens.as_linear(states) if tied else language.lm_head(states)
        return logits
