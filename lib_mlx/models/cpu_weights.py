"""How weights are kept where MLX runs on the CPU: in float32, if that fits.

MLX multiplies quantised weights without BLAS there: prefill is some 20 times slower, decoding 3 times. Half
precision is slower still, which is why it is widened even where quantised weights stay as they are.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from lib_mlx import memory
from lib_mlx.models.upstream import PLAIN_LAYERS

if TYPE_CHECKING:
    from mlx.nn.layers.base import Module

    from lib_mlx.config import CpuWeights
    from lib_mlx.status import WeightKind


def prepare_for_cpu(network: Module, wanted: CpuWeights) -> None:
    """Replace what is to become float32 by its computation; it is done when the parameters are evaluated."""
    quantised = _quantised_layers(network)
    plain = 4 * sum(array.size for array in _float_parameters(network))
    widened = 4 * sum(layer.weight.size * 32 // layer.bits for layer in quantised.values())
    limit = memory.available_bytes() // 2
    if wanted == "float32" or (wanted == "auto" and plain + widened < limit):
        convertible = {name: layer for name, layer in quantised.items() if _is_convertible(layer)}
        layers = [(name, _dequantised(layer)) for name, layer in convertible.items()]
        network.update_modules(tree_unflatten(layers))
        network.set_dtype(mx.float32)
    elif plain < limit:
        network.set_dtype(mx.float32)


def weight_kind(network: Module) -> WeightKind:
    """Return how the weights are kept; of several float types, the one with the most bytes."""
    if _quantised_layers(network):
        return "quantized"
    sizes: Counter[str] = Counter()
    for array in _float_parameters(network):
        sizes[str(array.dtype).removeprefix("mlx.core.")] += array.nbytes
    return cast("WeightKind", sizes.most_common(1)[0][0])


def _float_parameters(network: Module) -> list[mx.array]:
    parameters: Any = tree_flatten(network.parameters())  # type: ignore[no-untyped-call]
    return [array for _, array in parameters if mx.issubdtype(array.dtype, mx.floating)]


def _quantised_layers(network: Module) -> dict[str, Any]:
    modules: Any = network.named_modules()  # type: ignore[no-untyped-call]
    return {name: layer for name, layer in modules if "scales" in layer and hasattr(layer, "bits")}


def _is_convertible(layer: Any) -> bool:
    return type(layer) in PLAIN_LAYERS and layer.get("global_scale") is None


def _dequantised(layer: Any) -> Module:
    # Scales and biases are exact in float32.
    scales, biases = (
        array.astype(mx.float32) if array is not None and mx.issubdtype(array.dtype, mx.floating) else array
        for array in (layer.scales, layer.get("biases"))
    )
    weight = mx.dequantize(layer.weight, scales, biases, layer.group_size, layer.bits, layer.mode, dtype=mx.float32)
    plain: Any = PLAIN_LAYERS[type(layer)](*weight.shape[::-1])
    plain.weight = weight
    plain.pop("bias", None)
    if "bias" in layer:
        plain.bias = layer.bias
    return cast("Module", plain)
