"""The one place that looks into mlx-vlm's Qwen2-VL and Qwen2.5-VL (pinned to 0.7; tests/grounding/test_actor.py).

The head needs what a language model does not show: the embeddings it was given and the hidden states it ends with. And
nothing here uses the positions that mlx-vlm's language model remembers between calls: several images take turns.
Engine thread only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lib_mlx.models.kv_cache import new_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


class Backbone:
    """The network of a Qwen2-VL or Qwen2.5-VL.

    Args:
        network: mlx-vlm's model.
    """

    def __init__(self, network: Any) -> None:
        self._network = network
        self._inner = network.language_model.model

    def new_cache(self) -> list[Any]:
        """Return an empty cache for one prompt."""
        return new_cache(self._network.language_model)

    def embed(self, tokens: Sequence[int], pixels: np.ndarray, grid: tuple[int, int, int]) -> Embedded:
        """Run the vision tower and put its output among the tokens' embeddings.

        Args:
            tokens: the prompt's, with one image token for each merged patch.
            pixels: what the image processor made: (patches, values).
            grid: of patches: images, rows, columns.
        """
        made = self._network.get_input_embeddings(
            mx.array([tokens]), mx.array(pixels), image_grid_thw=mx.array([grid]), mask=None
        )
        mx.eval(made.inputs_embeds, made.position_ids, made.rope_deltas)
        return Embedded(made.inputs_embeds, made.position_ids, int(made.rope_deltas.item()))

    def states(self, embedded: Embedded, start: int, end: int, cache: list[Any]) -> mx.array:
        """Process a stretch of the prompt; returns the hidden states after the final norm: (tokens, width)."""
        values = embedded.values[:, start:end]
        positions = embedded.positions[..., start:end]
        found: mx.array = self._inner(None, inputs_embeds=values, cache=cache, position_ids=positions)[0]
        mx.eval(found, [layer.state for layer in cache])
        return found

    def next_state(self, token: int, position: int, cache: list[Any]) -> mx.array:
        """Process one more token at its index plus `Embedded.delta`; returns its state: (1, width)."""
        positions = mx.full((3, 1, 1), position)
        found: mx.array = self._inner(mx.array([[token]]), cache=cache, position_ids=positions)[0]
        return found

    def logits(self, states: mx.array) -> mx.array:
        """Return (tokens, vocabulary) for hidden states."""
        language = self._network.language_model
        tied = language.args.tie_word_embeddings
        logits: mx.array = self._inner.embed_tokens.as_linear(states) if tied else language.lm_head(states)
        return logits


class Embedded:
    """A prompt with an image, ready for the language model."""

    def __init__(self, values: mx.array, positions: mx.array, delta: int) -> None:
        self.values = values
        """(1, tokens, width)."""
        self.positions = positions
        """(3, 1, tokens): in time, down and across."""
        self.delta = delta
        """Add it to a later token's index to get its position: an image takes fewer positions than tokens."""
