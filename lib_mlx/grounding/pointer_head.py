"""GUI-Actor's head: attention of a pointer over an image's patches, in float32. Engine thread only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.nn.layers.activations import GELU
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.normalization import LayerNorm
from mlx.utils import tree_flatten

from lib_mlx.errors import CorruptModel
from lib_mlx.grounding.interface import HEAD_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HEADS = 8
_ROWS = 1024  # of queries at a time: all of them against all patches of a large image would take gigabytes


class PatchAttention(Module):
    """Self-attention over patches, with PyTorch's names and layout of parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.in_proj_weight = mx.zeros((3 * width, width))
        self.in_proj_bias = mx.zeros((3 * width,))
        self.out_proj = Linear(width, width)

    def __call__(self, patches: mx.array) -> mx.array:
        """Map (patches, width) to the same shape."""
        count, width = patches.shape
        mixed = patches @ self.in_proj_weight.T + self.in_proj_bias
        split = mixed.reshape(1, count, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
        queries, keys, values = split
        out = []
        for at in range(0, count, _ROWS):
            rows = mx.fast.scaled_dot_product_attention(
                queries[:, :, at : at + _ROWS], keys, values, scale=1 / math.sqrt(width // HEADS)
            )
            mx.eval(rows)
            out.append(rows)
        joined = mx.concatenate(out, axis=2).transpose(0, 2, 1, 3).reshape(count, width)
        result: mx.array = self.out_proj(joined)
        return result


class PointerHead(Module):
    """See the module. Parameters have the checkpoint's names.

    Args:
        width: of the language model's hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.projection_enc = _projection(width)
        self.projection_dec = _projection(width)
        self.self_attention = PatchAttention(width)
        self.layer_norm = LayerNorm(width)

    def logits(self, patches: mx.array, pointers: mx.array) -> mx.array:
        """Score each patch for each pointer, before the softmax.

        Args:
            patches: (patches, width), what the language model was given at the image's tokens.
            pointers: (pointers, width), its last hidden states at the pointer tokens.

        Returns:
            (pointers, patches), float32.
        """
        patches, pointers = patches.astype(mx.float32), pointers.astype(mx.float32)
        keys = _apply(self.projection_enc, self.layer_norm(patches + self.self_attention(patches)))
        queries = _apply(self.projection_dec, pointers)
        return queries @ keys.T / math.sqrt(keys.shape[-1])

    def attention(self, patches: mx.array, pointers: mx.array) -> mx.array:
        """Return the softmax of `logits` over patches."""
        return mx.softmax(self.logits(patches, pointers), axis=-1, precise=True)


def _projection(width: int) -> list[Any]:
    return [Linear(width, width), GELU(), Linear(width, width)]  # type: ignore[no-untyped-call]


def _apply(layers: list[Any], values: mx.array) -> mx.array:
    for layer in layers:
        values = layer(values)
    return values


def load_head(tensors: Mapping[str, mx.array], source: Path) -> PointerHead:
    """Return the head of a checkpoint, evaluated, in float32 whatever it is stored in.

    Args:
        tensors: the checkpoint's, by name; all but the head's are left alone.
        source: the checkpoint's directory, for errors.

    Raises:
        CorruptModel: a tensor of it is missing, or one does not fit.
    """
    weights = [
        (name.removeprefix(HEAD_PREFIX), value.astype(mx.float32))
        for name, value in tensors.items()
        if name.startswith(HEAD_PREFIX)
    ]
    norm = dict(weights).get("layer_norm.weight")
    if norm is None:
        raise CorruptModel(f"{source} has no pointer head.", hint="Fetch the model again.")
    head = PointerHead(norm.shape[0])
    try:
        head.load_weights(weights)
    except ValueError as error:
        raise CorruptModel(
            f"The pointer head of {source} does not work: {error}.", hint="Fetch the model again."
        ) from error
    parameters: Any = tree_flatten(head.parameters())  # type: ignore[no-untyped-call]
    mx.eval([value for _, value in parameters])
    return head
