"""How weights are kept where MLX runs on the CPU: as they are stored, if our own C can multiply with them.

The others become float32, if that fits. MLX multiplies quantised weights without BLAS, which is many times slower
(docs/performance.md). Half precision is slower still, which is why it is widened even where quantised weights stay as
they are.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from lib_mlx import memory
from lib_mlx.models import cpu_library, packed
from lib_mlx.models.upstream import PLAIN_LAYERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx.nn.layers.base import Module

    from lib_mlx.config import CpuWeights
    from lib_mlx.status import WeightKind


def prepare_for_cpu(
    network: Module,
    wanted: CpuWeights,
    progress: Callable[[float], None] = lambda _: None,
    between: Callable[[], None] = lambda: None,
) -> float:
    """Pack the weights, or make them float32; return the fraction that is in memory, the rest is to be evaluated.

    Args:
        network: as it was loaded, not evaluated.
        wanted: see `LoadConfig.cpu_weights`.
        progress: told that fraction as it grows.
        between: called before each weight; what it raises ends the work.
    """
    begun = 0.0
    if wanted != "float32":
        stored = sum(array.nbytes for array in _arrays(network)) or 1
        begun = packed.pack(network, lambda size: progress(size / stored), between) / stored
    quantised = {name: layer for name, layer in _quantised_layers(network).items() if not packed.is_packed(layer)}
    plain = 4 * sum(array.size for array in _arrays(network, _is_loose) if _is_float(array))
    widened = 4 * sum(map(_size, quantised.values()))
    limit = memory.available_bytes() // 2
    if wanted != "float32" and (wanted == "quantized" or plain + widened >= limit):
        if plain < limit:
            _widen(network)
        return begun
    done = 0.0
    while quantised:  # and freed one by one, so that no more memory is taken than the result needs
        name, layer = quantised.popitem()
        if _is_convertible(layer):
            between()
            network.update_modules(tree_unflatten([(name, _dequantised(layer))]))
            done += 4 * _size(layer) / (plain + widened)
            progress(begun + (1 - begun) * done)
    _widen(network)
    return begun + (1 - begun) * done


def weight_kind(network: Module) -> WeightKind:
    """Return how the weights are kept; of several float types, the one with the most bytes."""
    if _quantised_layers(network):
        return "quantized"
    sizes: Counter[str] = Counter()
    for array in filter(_is_float, _arrays(network)):
        sizes[str(array.dtype).removeprefix("mlx.core.")] += array.nbytes
    return cast("WeightKind", sizes.most_common(1)[0][0])


def _arrays(network: Any, wanted: Callable[[Module, str, Any], bool] | None = None) -> list[mx.array]:
    """Return the parameters."""
    parameters: Any = tree_flatten(network.filter_and_map(wanted or network.valid_parameter_filter))
    return [array for _, array in parameters]


def _is_float(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.floating)


def _is_loose(module: Module, key: str, value: Any) -> bool:
    """Return whether a parameter is free to change its type."""
    is_parameter = bool(type(module).valid_parameter_filter(module, key, value))  # type: ignore[no-untyped-call]
    return is_parameter and (key == "bias" or not packed.is_packed(module))


def _widen(network: Module) -> None:
    def widen(array: mx.array) -> mx.array:
        return array.astype(mx.float32) if _is_float(array) else array

    network.apply(widen, _is_loose)


def _quantised_layers(network: Module) -> dict[str, Any]:
    modules: Any = network.named_modules()  # type: ignore[no-untyped-call]
    return {name: layer for name, layer in modules if "scales" in layer and hasattr(layer, "bits")}


def _is_convertible(layer: Any) -> bool:
    return type(layer) in PLAIN_LAYERS and layer.get("global_scale") is None


def _size(layer: Any) -> int:
    return int(layer.weight.size * 32 // layer.bits)


def _dequantised(layer: Any) -> Module:
    # Scales and biases are exact in float32.
    scales, biases = (
        array.astype(mx.float32) if array is not None and mx.issubdtype(array.dtype, mx.floating) else array
        for array in (layer.scales, layer.get("biases"))
    )
    weight = _unpacked(layer, scales, biases) if layer.mode == "affine" else None
    if weight is None:
        weight = mx.dequantize(layer.weight, scales, biases, layer.group_size, layer.bits, layer.mode, dtype=mx.float32)
    plain: Any = PLAIN_LAYERS[type(layer)](*weight.shape[::-1])
    plain.weight = weight
    plain.pop("bias", None)
    if "bias" in layer:
        plain.bias = layer.bias
    return cast("Module", plain)


def _unpacked(layer: Any, scales: mx.array, biases: mx.array) -> mx.array | None:
    """Return the layer's weight in float32, made by our own C, which is faster; None where that cannot do it."""
    library = cpu_library.load()
    if library is None or layer.bits not in {2, 4, 8}:
        return None
    weight = mx.zeros((*scales.shape[:-1], scales.shape[-1] * layer.group_size))
    inputs = [mx.contiguous(array) for array in (layer.weight, scales, biases)]
    mx.eval(weight, inputs)
    # MLX's arrays lend their memory; nothing else knows this one yet.
    packed, scale, bias, out = (
        ctypes.byref(ctypes.c_char.from_buffer(cast("Any", memoryview(cast("Any", array)))))
        for array in (*inputs, weight)
    )
    library.lib_mlx_dequantize(packed, scale, bias, ctypes.c_size_t(scales.size), layer.group_size, layer.bits, out)
    return weight
