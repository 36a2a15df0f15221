"""The vision tower of a Qwen2-VL or Qwen2.5-VL as ONNX, for one image.

Patches keep their order: the windows of Qwen2.5-VL are a mask, which gives the same numbers as sorting patches by them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.export.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_EPSILON = 1e-6
_FAR = -1e9  # added to the scores of patches in other windows


@dataclass(frozen=True)
class _Shape:
    """What config.json says of a tower."""

    width: int
    depth: int
    heads: int
    merge: int
    window: int | None
    """Merged patches of a window's side; None without windows."""
    whole: frozenset[int]
    """Blocks that attend beyond windows."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Shape:
        vision = config["vision_config"]
        merge = int(vision.get("spatial_merge_size", 2))
        windows = config["model_type"] == "qwen2_5_vl"
        return cls(
            width=int(vision["hidden_size"] if windows else vision["embed_dim"]),
            depth=int(vision["depth"]),
            heads=int(vision["num_heads"]),
            merge=merge,
            window=int(vision["window_size"]) // merge // int(vision["patch_size"]) if windows else None,
            whole=frozenset(vision["fullatt_block_indexes"]) if windows else frozenset(),
        )


def export_vision_tower(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], path: Path) -> Path:
    """Write the tower.

    Its inputs are `pixel_values` (patches, values) and `grid`, the rows and columns of patches as int64; its output is
    `image_features` (merged patches, width of the language model).

    Args:
        config: the checkpoint's.
        tensors: the tower's, by the checkpoint's names without their prefix, in PyTorch's layout.
        path: of the file.
    """
    return _Tower(_Shape.of(config), tensors).build(path)


class _Tower:
    def __init__(self, shape: _Shape, tensors: Mapping[str, np.ndarray]) -> None:
        self._shape = shape
        self._tensors = tensors
        self._graph = Graph("vision_tower")

    def build(self, path: Path) -> Path:
        graph, shape = self._graph, self._shape
        embedding = self._tensors["patch_embed.proj.weight"].reshape(shape.width, -1)
        pixels = graph.input("pixel_values", ["patches", embedding.shape[1]])
        down, across = self._places(graph.input("grid", [2], "INT64"))
        rotation = self._rotation(down, across)
        mask = self._windows(down, across) if shape.window else None
        states = graph.linear(pixels, embedding)
        for index in range(shape.depth):
            windows = mask if index not in shape.whole else None
            states = self._block(f"blocks.{index}", states, rotation, windows)
        features, width = self._merge(states)
        graph.output("image_features", features, ["merged_patches", width])
        return graph.save(path)

    def _linear(self, name: str, value: str) -> str:
        return self._graph.linear(value, self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias"))

    def _norm(self, name: str, value: str) -> str:
        graph, scale = self._graph, self._graph.constant(self._tensors[f"{name}.weight"])
        if f"{name}.bias" in self._tensors:
            shift = graph.constant(self._tensors[f"{name}.bias"])
            return graph("LayerNormalization", value, scale, shift, epsilon=_EPSILON)
        mean = graph("ReduceMean", graph("Mul", value, value), graph.constant([-1]), keepdims=1)
        root = graph("Sqrt", graph("Add", mean, graph.constant(_EPSILON)))
        return graph("Mul", graph("Div", value, root), scale)

    def _places(self, grid: str) -> tuple[str, str]:
        """Return each patch's row and column; patches come merged square by merged square."""
        graph, merge = self._graph, self._shape.merge
        first, second = (graph("Slice", grid, graph.constant([at]), graph.constant([at + 1])) for at in (0, 1))
        squares = [graph("Div", size, graph.constant([merge])) for size in (first, second)]
        side = graph.constant([merge])
        split = graph("Concat", squares[0], side, squares[1], side, axis=0)
        places = []
        for size, turn in ((first, [-1, 1]), (second, [1, -1])):
            zero, one = graph.constant(np.array(0)), graph.constant(np.array(1))
            line = graph("Range", zero, graph("Squeeze", size), one)
            plane = graph("Expand", graph.reshape(line, *turn), grid)
            sorted_ = graph("Transpose", graph("Reshape", plane, split), perm=[0, 2, 1, 3])
            places.append(graph.reshape(sorted_, -1))
        return places[0], places[1]

    def _rotation(self, down: str, across: str) -> tuple[str, str]:
        """Return cosine and sine (1, patches, width of a head)."""
        graph = self._graph
        half = self._shape.width // self._shape.heads // 2
        speeds = graph.constant((1 / 10000 ** (np.arange(0, half, 2) / half)).astype(np.float32)[None])
        angles = []
        for place in (down, across):
            column = graph.reshape(graph("Cast", place, to=1), -1, 1)
            angles.append(graph("MatMul", column, speeds))
        twice = graph("Concat", *angles, *angles, axis=-1)
        twice = graph("Unsqueeze", twice, graph.constant([0]))
        return graph("Cos", twice), graph("Sin", twice)

    def _windows(self, down: str, across: str) -> str:
        """Return what is added to the scores (patches, patches): much less than nothing between windows."""
        graph, shape = self._graph, self._shape
        side = graph.constant([int(shape.window or 1) * shape.merge])
        same = []
        for place in (down, across):
            window = graph("Div", place, side)
            same.append(graph("Equal", graph.reshape(window, -1, 1), graph.reshape(window, 1, -1)))
        both = graph("And", *same)
        return graph("Where", both, graph.constant(0.0), graph.constant(_FAR))

    def _block(self, name: str, states: str, rotation: tuple[str, str], mask: str | None) -> str:
        graph = self._graph
        attended = self._attention(f"{name}.attn", self._norm(f"{name}.norm1", states), rotation, mask)
        states = graph("Add", states, attended)
        return graph("Add", states, self._mlp(f"{name}.mlp", self._norm(f"{name}.norm2", states)))

    def _attention(self, name: str, states: str, rotation: tuple[str, str], mask: str | None) -> str:
        graph, shape = self._graph, self._shape
        each = shape.width // shape.heads
        joined = graph.reshape(self._linear(f"{name}.qkv", states), -1, 3, shape.heads, each)
        turned = graph("Transpose", joined, perm=[1, 2, 0, 3])
        queries, keys, values = (graph("Gather", turned, graph.constant(np.array(at)), axis=0) for at in range(3))
        queries, keys = (self._rotated(value, rotation, each) for value in (queries, keys))
        scores = graph("MatMul", queries, graph("Transpose", keys, perm=[0, 2, 1]))
        scores = graph("Div", scores, graph.constant(math.sqrt(each)))
        if mask is not None:
            scores = graph("Add", scores, mask)
        mixed = graph("MatMul", graph("Softmax", scores, axis=-1), values)
        together = graph.reshape(graph("Transpose", mixed, perm=[1, 0, 2]), -1, shape.width)
        return self._linear(f"{name}.proj", together)

    def _rotated(self, value: str, rotation: tuple[str, str], each: int) -> str:
        graph = self._graph
        ends = [graph.constant([at]) for at in (0, each // 2, each)]
        axis = graph.constant([2])
        low, high = (graph("Slice", value, begin, end, axis) for begin, end in itertools.pairwise(ends))
        turned = graph("Concat", graph("Neg", high), low, axis=-1)
        return graph("Add", graph("Mul", value, rotation[0]), graph("Mul", turned, rotation[1]))

    def _mlp(self, name: str, states: str) -> str:
        graph = self._graph
        if f"{name}.fc1.weight" in self._tensors:
            inner = self._linear(f"{name}.fc1", states)
            gate = graph("Sigmoid", graph("Mul", inner, graph.constant(1.702)))  # the quick GELU
            return self._linear(f"{name}.fc2", graph("Mul", inner, gate))
        gate = self._linear(f"{name}.gate_proj", states)
        gate = graph("Mul", gate, graph("Sigmoid", gate))
        return self._linear(f"{name}.down_proj", graph("Mul", gate, self._linear(f"{name}.up_proj", states)))

    def _merge(self, states: str) -> tuple[str, int]:
        graph, shape = self._graph, self._shape
        squares = graph.reshape(self._norm("merger.ln_q", states), -1, shape.width * shape.merge**2)
        inner = graph("Gelu", self._linear("merger.mlp.0", squares))
        return self._linear("merger.mlp.2", inner), self._tensors["merger.mlp.2.weight"].shape[0]
