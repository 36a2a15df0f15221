"""GGUF's tensor blocks as MLX stores them, losslessly.

MLX quantises affinely in groups along a row: weight = scale · q + bias with unsigned q packed into 32-bit words.
A group of 32 holds exactly one block of Q4_0, Q4_1 or Q8_0, so their numbers are kept as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lib_mlx.errors import CorruptModel, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lib_mlx.models.gguf.file import Tensor

GROUP_SIZE = 32
Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Quantized:
    """One MLX-quantised matrix: packed words, and a float16 scale and bias for each group of 32."""

    weight: Array
    scales: Array
    biases: Array
    bits: int


def decode(tensor: Tensor, data: bytes, rows: Array | None = None) -> Array | Quantized:
    """Return the tensor as NumPy array(s) in MLX's layout; `rows` reorders its rows.

    bfloat16 comes as uint16: NumPy has no such type.

    Raises:
        UnsupportedModel: MLX has no lossless counterpart for the type (K- and I-quants).
        CorruptModel: a scale or bias is not a finite float16.
    """
    if tensor.type in _PLAIN:
        plain = np.frombuffer(data, _PLAIN[tensor.type]).reshape(tensor.shape)
        return plain if rows is None else plain[rows]
    unpack = _BLOCKS.get(tensor.type)
    if unpack is None:
        raise UnsupportedModel(
            f"The tensor {tensor.name!r} is quantised as {tensor.type}, which MLX cannot hold without loss.",
            hint="Use a Q4_0, Q4_1, Q8_0, BF16 or F16 file, or convert the original with `mlx_lm.convert`.",
        )
    if len(tensor.shape) != 2:
        raise CorruptModel(f"The tensor {tensor.name!r} is quantised but not a matrix.", hint="Fetch it again.")
    blocks = np.frombuffer(data, np.uint8).reshape(tensor.shape[0], tensor.shape[1] // GROUP_SIZE, -1)
    with np.errstate(over="ignore"):
        result = unpack(blocks if rows is None else blocks[rows])
    if not (np.isfinite(result.scales).all() and np.isfinite(result.biases).all()):
        raise CorruptModel(f"The tensor {tensor.name!r} has a scale that is no number.", hint="Fetch it again.")
    return result


def shorten(array: Array, kind: str) -> Array:
    """Return float32 values as `kind` ("F16" or "BF16") if not one of them changes, else as they are.

    GGUF keeps vectors (norms, biases) in float32; beside shorter matrices they would widen every activation.
    """
    if array.dtype != np.float32:
        return array
    if kind == "BF16":
        words = np.ascontiguousarray(array).view("<u4")
        return array if (words & 0xFFFF).any() else (words >> 16).astype("<u2")
    with np.errstate(over="ignore", under="ignore"):
        short = array.astype("<f2")
    return short if kind == "F16" and np.array_equal(short.astype(np.float32), array) else array


def widen(array: Array) -> Array:
    """Return float16 or bfloat16 (as uint16) values as float32."""
    if array.dtype == np.uint16:
        return (array.astype("<u4") << 16).view("<f4")
    return array.astype("<f4")


def _f16(blocks: Array, at: int) -> Array:
    """Return the little-endian float16 at byte `at` of each block."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0]


def _pack4(nibbles: Array) -> Array:
    """Pack each block's 16 bytes (element i low, element i + 16 high) into words, element 0 lowest."""
    elements = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
    return _words(elements[..., 0::2] | elements[..., 1::2] << 4)


def _words(octets: Array) -> Array:
    """Join the last two axes of bytes and read them as little-endian 32-bit words."""
    rows = octets.shape[0]
    return np.ascontiguousarray(octets.reshape(rows, -1)).view("<u4")


def _q4_0(blocks: Array) -> Quantized:
    scales = _f16(blocks, 0)
    return Quantized(_pack4(blocks[..., 2:]), scales, scales * np.float16(-8), 4)


def _q4_1(blocks: Array) -> Quantized:
    return Quantized(_pack4(blocks[..., 4:]), _f16(blocks, 0), _f16(blocks, 2), 4)


def _q8_0(blocks: Array) -> Quantized:
    scales = _f16(blocks, 0)
    return Quantized(_words(blocks[..., 2:] ^ 0x80), scales, scales * np.float16(-128), 8)


_PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BLOCKS: Mapping[str, Callable[[Array], Quantized]] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}
