"""Adapters of a network: `adapters.safetensors` and `adapter_config.json` in a directory.

In mlx-lm's layout; those of a `VisionNetwork` are of its language model, in mlx-vlm's layout: names begin at the whole
model, and layers are mlx-vlm's own. Engine thread only, but for `read_shape`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from lib_mlx.errors import CorruptModel, ModelNotFound, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

Method = Literal["lora", "dora", "full"]
WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
_LEAVES = frozenset({"lora_a", "lora_b", "m"})  # of an adapter's layer


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
        raise ModelNotFound(
            f"{path.absolute()} holds no adapter.", hint=f"It needs {CONFIG} and {WEIGHTS}.", param="adapter_path"
        )
    try:
        values = json.loads((path / CONFIG).read_bytes())
        return _shape_of(values)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptModel(f"{path / CONFIG} is no adapter's: {error!r}.", hint="Train or fetch it again.") from error


def _shape_of(values: dict[str, Any]) -> AdapterShape:
    """Return what mlx-lm's adapter_config.json says; raises whatever Python does for what is none."""
    method, layers = values.get("fine_tune_type", "lora"), int(values["num_layers"])
    if method not in get_args(Method):  # mlx-lm takes it for lora
        raise ValueError(f"the method {method!r} is unknown")
    if method == "full":
        return AdapterShape(method, layers)
    parameters = values["lora_parameters"]
    rank, scale, keys = int(parameters["rank"]), float(parameters["scale"]), parameters.get("keys")
    if rank < 1 or not math.isfinite(scale):
        raise ValueError(f"rank {rank}, scale {scale}")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ValueError("'keys' is no list of names")
    dropout = float(parameters.get("dropout", 0.0))
    return AdapterShape(method, layers, rank, scale, dropout, None if keys is None else tuple(keys))


def add_adapter(network: Any, shape: AdapterShape) -> None:
    """Freeze the network and give it new adapters, which change nothing yet; or with "full" thaw its layers.

    Raises:
        UnsupportedFeature: a layer can have none of this kind, or there are not so many layers.
    """
    count = len(network.layers)
    if shape.layers > count:
        raise UnsupportedFeature(f"The model has {count} layers, not {shape.layers}.", hint="Use -1.", param="layers")
    whole, language, _ = _parts(network)
    whole.freeze()
    if shape.method == "full" and shape.layers < 0:
        language.unfreeze()
        return
    if shape.method == "full":
        for layer in network.layers[count - shape.layers :]:
            layer.unfreeze()
        return
    try:
        _add_layers(network, shape)
    except (ValueError, KeyError) as error:
        raise UnsupportedFeature(
            f"This model can have no adapter of the method {shape.method!r}: {error}.", hint="Use lora.", param="method"
        ) from error


def _parts(network: Any) -> tuple[Any, Any, Any]:
    """Return a network's modules, those of its language model, and the module with what adapters are made of."""
    from lib_mlx.models.vision_network import VisionNetwork

    if isinstance(network, VisionNetwork):
        from lib_mlx.models import upstream_vlm_tuner

        return network.whole, network.language, upstream_vlm_tuner
    from lib_mlx.models import upstream_tuner

    return network, network, upstream_tuner


def _add_layers(network: Any, shape: AdapterShape) -> None:
    whole, language, tuner = _parts(network)
    parameters = shape.to_json()["lora_parameters"]
    if shape.keys is not None:  # mlx-vlm's trainer writes names that begin at the whole model
        begin = next(name for name, module in whole.named_modules() if module is language)
        parameters["keys"] = [key.removeprefix(f"{begin}.") for key in shape.keys]
    # -1 is 0 there, which is all layers
    tuner.linear_to_lora_layers(language, shape.layers, parameters, shape.method == "dora")


def remove_adapter(network: Any) -> None:
    """Give the network its own layers back. Nothing happens to one without an adapter."""
    from mlx.utils import tree_unflatten

    from lib_mlx.models import packed

    whole, _, tuner = _parts(network)
    own = [
        (name, module[part])
        for name, module in whole.named_modules()
        for kind, part in tuner.ADAPTED.items()
        if type(module) is kind
    ]
    whole.update_modules(tree_unflatten(own))
    packed.join(whole)


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
    whole = _parts(network)[0]
    packed.separate(whole)
    try:
        load_adapter(network, path)
    except BaseException:
        remove_adapter(network)
        raise
    import mlx.core as mx

    mx.eval(_parts(network)[1].parameters())


def fuse_adapter(network: Any, *, dequantize: bool) -> None:
    """Put the network's adapter into its weights, quantised again as they were unless `dequantize` is given."""
    from mlx.utils import tree_unflatten

    whole, _, tuner = _parts(network)
    fused = [
        (name, module.fuse(dequantize=dequantize))
        for name, module in whole.named_modules()
        if type(module) in tuner.ADAPTED
    ]
    whole.update_modules(tree_unflatten(fused))


def load_adapter(network: Any, path: Path) -> AdapterShape:
    """Give the network the adapter in a directory; returns its shape.

    Raises:
        ModelNotFound, CorruptModel: there is none, or it is not of this model.
    """
    shape = read_shape(path)
    try:
        if shape.method != "full":
            _add_layers(network, shape)
        whole, _, tuner = _parts(network)
        _install(whole, path, shape, tuner.ADAPTED)
    except Exception as error:  # whatever Python raises for a file that is not what it should be
        raise CorruptModel(
            f"The adapter at {path} does not fit the model: {error}.", hint="Use the model it was trained on."
        ) from error
    return shape


def _install(network: Any, path: Path, shape: AdapterShape, adapted: Container[Any]) -> None:
    """Load an adapter's weights: each has its place, and each place is filled. Upstream's loaders do not look."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights = cast("dict[str, mx.array]", mx.load(str(path / WEIGHTS)))
    known: dict[str, mx.array] = dict(cast("Any", tree_flatten(network.parameters())))
    for name, array in weights.items():
        if name not in known or (shape.method != "full" and name.rpartition(".")[2] not in _LEAVES):
            raise ValueError(f"{name} is no place for an adapter's weights")
        if array.shape != known[name].shape:
            raise ValueError(f"{name} has the shape {array.shape}, and its place {known[name].shape}")
        if not mx.issubdtype(array.dtype, mx.floating) or not mx.isfinite(array).all().item():
            raise ValueError(f"{name} holds what are no weights")
    if shape.method != "full":
        places = {
            f"{name}.{leaf}"
            for name, module in network.named_modules()
            if type(module) in adapted
            for leaf in _LEAVES
            if leaf in module
        }
        if not places or (missing := places - weights.keys()):
            raise ValueError(f"it lacks {min(missing)}" if places else "no layer of it is one of the model")
    network.load_weights(list(weights.items()), strict=False)
