"""Quantising a network's weights. Engine thread only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx.nn.layers.quantized import quantize as quantize_layers
from mlx.utils import tree_map_with_path

from lib_mlx.conversion.config import SCHEMES
from lib_mlx.errors import UnsupportedFeature
from lib_mlx.models.upstream_tuner import mixed_quant_predicate_builder

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.conversion.config import ConvertConfig

    Choice = bool | dict[str, Any]


def quantize(network: Any, checkpoint: dict[str, Any], config: ConvertConfig) -> dict[str, Any]:
    """Quantise `network` as `config` says; returns its config.json, of `checkpoint` and how it is quantised now.

    Raises:
        UnsupportedFeature: the recipe does not know the architecture.
    """
    mode = config.mode or "affine"
    group_size, bits = config.group_size or SCHEMES[mode][0], config.bits or SCHEMES[mode][1]
    scheme = {"group_size": group_size, "bits": bits, "mode": mode}
    told: dict[str, Any] = dict(scheme)
    choose = _chooser(network, config, group_size)

    def decide(path: str, module: Any) -> Choice:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
            return False
        choice = choose(path, module)
        if isinstance(choice, dict) and choice != scheme:
            told[path] = choice
        return choice

    quantize_layers(network, group_size, bits, mode=mode, class_predicate=decide)
    # transformers looks for the second name
    return {**_unquantised(checkpoint), "quantization": told, "quantization_config": told}


def record(network: Any, checkpoint: dict[str, Any], config: ConvertConfig) -> dict[str, Any]:
    """Return config.json for a network whose layers were quantised one by one."""
    told: dict[str, Any] = {"group_size": config.group_size or 64, "bits": config.bits or 4}

    def look(path: str, module: Any) -> None:
        own = {"group_size": module.group_size, "bits": module.bits} if hasattr(module, "bits") else False
        if own != told:
            told[path] = own

    tree_map_with_path(look, network.leaf_modules(), is_leaf=lambda module: hasattr(module, "parameters"))
    return {**_unquantised(checkpoint), "quantization": told, "quantization_config": told}


def cast_weights(network: Any, dtype: str, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Give the floating-point weights another type; returns config.json, which says so."""
    wanted: mx.Dtype = getattr(mx, dtype)
    keeps = getattr(network, "cast_predicate", lambda _: True)  # what an architecture needs in its own type

    def change(path: str, array: mx.array) -> mx.array:
        return array.astype(wanted) if keeps(path) and mx.issubdtype(array.dtype, mx.floating) else array

    network.update(tree_map_with_path(change, network.parameters()))
    return {**checkpoint, "torch_dtype": dtype}


def dequantized(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return config.json without what it says of quantisation."""
    return _unquantised(checkpoint)


def _unquantised(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in checkpoint.items() if key not in {"quantization", "quantization_config"}}


def _chooser(network: Any, config: ConvertConfig, group_size: int) -> Callable[[str, Any], Choice]:
    if config.recipe is None:
        own = getattr(network, "quant_predicate", None)  # some architectures must not be quantised everywhere
        return own if callable(own) else lambda _path, _module: True
    try:
        return cast("Callable[[str, Any], Choice]", mixed_quant_predicate_builder(config.recipe, network, group_size))
    except ValueError as error:
        raise UnsupportedFeature(
            f"The recipe {config.recipe} does not know this architecture: {error}.", hint="Use bits.", param="recipe"
        ) from error
