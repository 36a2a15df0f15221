"""A GUI-Actor's pointer head as ONNX."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lib_mlx.export.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

_HEADS = 8


def export_pointer_head(tensors: Mapping[str, np.ndarray], path: Path) -> Path:
    """Write the head: inputs `patches` and `pointers`, output `attention` (pointers, patches).

    Args:
        tensors: the head's, by the checkpoint's names without their prefix.
        path: of the file.
    """
    width = tensors["layer_norm.weight"].shape[0]
    graph = Graph("pointer_head")
    patches = graph.input("patches", ["patches", width])
    pointers = graph.input("pointers", ["pointers", width])
    attended = _attention(graph, tensors, patches, width)
    scale, shift = (graph.constant(tensors[f"layer_norm.{part}"]) for part in ("weight", "bias"))
    mixed = graph("LayerNormalization", graph("Add", patches, attended), scale, shift, epsilon=1e-5)
    keys = _projection(graph, tensors, "projection_enc", mixed)
    queries = _projection(graph, tensors, "projection_dec", pointers)
    product = graph("MatMul", queries, graph("Transpose", keys, perm=[1, 0]))
    logits = graph("Div", product, graph.constant(math.sqrt(width)))
    graph.output("attention", graph("Softmax", logits, axis=-1), ["pointers", "patches"])
    return graph.save(path)


def _attention(graph: Graph, tensors: Mapping[str, np.ndarray], patches: str, width: int) -> str:
    """Self-attention over patches."""
    joined = tensors["self_attention.in_proj_weight"], tensors["self_attention.in_proj_bias"]
    each = width // _HEADS
    parts = []
    for index in range(3):
        rows = slice(index * width, (index + 1) * width)
        part = graph.linear(patches, joined[0][rows], joined[1][rows])
        parts.append(graph("Transpose", graph.reshape(part, -1, _HEADS, each), perm=[1, 0, 2]))
    queries, keys, values = parts
    scores = graph("MatMul", queries, graph("Transpose", keys, perm=[0, 2, 1]))
    weights = graph("Softmax", graph("Div", scores, graph.constant(math.sqrt(each))), axis=-1)
    mixed = graph("Transpose", graph("MatMul", weights, values), perm=[1, 0, 2])
    out = tensors["self_attention.out_proj.weight"], tensors["self_attention.out_proj.bias"]
    return graph.linear(graph.reshape(mixed, -1, width), *out)


def _projection(graph: Graph, tensors: Mapping[str, np.ndarray], name: str, value: str) -> str:
    first = graph.linear(value, tensors[f"{name}.0.weight"], tensors[f"{name}.0.bias"])
    return graph.linear(graph("Gelu", first), tensors[f"{name}.2.weight"], tensors[f"{name}.2.bias"])
