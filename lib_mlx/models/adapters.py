"""Adapters of a network, in mlx-lm's layout: `adapters.safetensors` and `adapter_config.json` in a directory.

Engine thread only, but for `read_shape`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lib_mlx.errors import CorruptModel, ModelNotFound, UnsupportedFeature

if TYPE_CHECKING:
    from pathlib import Path

    from mlx.nn.layers.base import Module

Method = Literal["lora", "dora", "full"]
WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class AdapterShape:
    """What an adapter is like."""

    method: Method = "lora"
    layers: int = -1
    """How many of the last layers have one; -1: all."""
    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None
    """The modules of a layer that have one; None: all that can."""

    def to_json(self) -> dict[str, Any]:
        """Return mlx-lm's adapter_config.json."""
        parameters: dict[str, Any] = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout}
        if self.keys is not None:
            parameters["keys"] = list(self.keys)
        return {
            "fine_tune_type": self.method,
            "num_layers": self.layers,
            "lora_parameters": None if self.method == "full" else parameters,
        }


def read_shape(path: Path) -> AdapterShape:
    """Return the shape of the adapter in a directory.

    Raises:
        ModelNotFound: there is none.
        CorruptModel: its configuration cannot be read.
    """
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise ModelNotFound(f"{path} holds no adapter.", hint=f"It needs {CONFIG} and {WEIGHTS}.", param="adapter_path")
    try:
        values = json.loads((path / CONFIG).read_bytes())
        parameters = values.get("lora_parameters") or {}
        keys = parameters.get("keys")
        return AdapterShape(
            values.get("fine_tune_type", "lora"),
            int(values["num_layers"]),
            int(parameters.get("rank", 8)),
            float(parameters.get("scale", 20.0)),
            float(parameters.get("dropout", 0.0)),
            None if keys is None else tuple(keys),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptModel(f"{path / CONFIG} is no adapter's: {error!r}.", hint="Train or fetch it again.") from error


def add_adapter(network: Any, shape: AdapterShape) -> None:
    """Freeze the network and give it new adapters, which change nothing yet; or with "full" thaw its layers.

    Raises:
        UnsupportedFeature: a layer can have none of this kind, or there are not so many layers.
    """
    from lib_mlx.models.upstream_tuner import linear_to_lora_layers

    count = len(network.layers)
    if shape.layers > count:
        raise UnsupportedFeature(f"The model has {count} layers, not {shape.layers}.", hint="Use -1.", param="layers")
    if shape.method == "full" and shape.layers < 0:
        network.unfreeze()
        return
    network.freeze()
    if shape.method == "full":
        for layer in network.layers[count - shape.layers :]:
            layer.unfreeze()
        return
    try:
        # -1 is 0 there, which is all layers
        linear_to_lora_layers(network, shape.layers, shape.to_json()["lora_parameters"], shape.method == "dora")
    except (ValueError, KeyError) as error:
        raise UnsupportedFeature(
            f"This model can have no adapter of the method {shape.method!r}: {error}.", hint="Use lora.", param="method"
        ) from error


def remove_adapter(network: Any) -> None:
    """Give the network its own layers back. Nothing happens to one without an adapter."""
    from mlx.utils import tree_unflatten

    from lib_mlx.models import packed
    from lib_mlx.models.upstream_tuner import ADAPTED

    own = [
        (name, module[part])
        for name, module in network.named_modules()
        for kind, part in ADAPTED.items()
        if type(module) is kind
    ]
    network.update_modules(tree_unflatten(own))
    packed.join(network)


def check_swappable(path: Path) -> None:
    """Look at the adapter in a directory, before it takes another's place.

    Raises:
        ModelNotFound, CorruptModel: there is none, or its configuration cannot be read.
        UnsupportedFeature: it is not an adapter but all weights.
    """
    if read_shape(path).method == "full":
        raise UnsupportedFeature(
            f"{path} holds weights, not an adapter.", hint="Load the model with it.", param="adapter"
        )


def swap_adapter(network: Any, path: Path | None) -> None:
    """Put another adapter in the place of the network's, or none. The weights stay in memory.

    Raises:
        CorruptModel: it does not fit; the network has none then.
    """
    from lib_mlx.models import packed

    remove_adapter(network)
    if path is None:
        return
    packed.separate(network)
    try:
        load_adapter(network, path)
    except BaseException:
        remove_adapter(network)
        raise
    import mlx.core as mx

    mx.eval(network.parameters())


def load_adapter(network: Module, path: Path) -> AdapterShape:
    """Give the network the adapter in a directory; returns its shape.

    Raises:
        ModelNotFound, CorruptModel: there is none, or it is not of this model.
    """
    from lib_mlx.models.upstream_tuner import load_adapters

    shape = read_shape(path)
    try:
        load_adapters(network, str(path))
    except Exception as error:  # whatever Python raises for a file that is not what it should be
        raise CorruptModel(
            f"The adapter at {path} does not fit the model: {error}.", hint="Use the model it was trained on."
        ) from error
    return shape
