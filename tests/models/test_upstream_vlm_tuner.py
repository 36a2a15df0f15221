"""What lib_mlx needs of mlx-vlm's tuner. A failure here means: mlx-vlm changed, read its notes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx_vlm.models.switch_layers import SwitchLinear

from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_network
from lib_mlx.models.upstream_vlm_tuner import ADAPTED, linear_to_lora_layers, not_supported_for_training
from tests.models.vision import PLAIN

PARAMETERS = {"rank": 2, "scale": 1.5, "dropout": 0.0}


def language() -> Any:
    vision = load_network(inspect(PLAIN))[1]
    assert vision is not None
    return vision.language


def adapted(network: Any) -> set[str]:
    """The names of the layers that have adapters."""
    return {name for name, module in network.named_modules() if type(module) in ADAPTED}


def test_which_layers_have_adapters() -> None:
    """All linear ones of all layers with -1, of the last so many, or those of the keys, wherever the names begin."""
    network = language()
    linear = {name for name, module in network.named_modules() if isinstance(module, Linear)}
    linear_to_lora_layers(network, -1, dict(PARAMETERS))
    assert adapted(network) == linear
    for keys in (["self_attn.q_proj"], ["model.layers.1.self_attn.q_proj"]):
        network = language()
        linear_to_lora_layers(network, 1, {**PARAMETERS, "keys": keys}, True)
        assert adapted(network) == {"model.layers.1.self_attn.q_proj"}


@pytest.mark.parametrize("kind", ADAPTED, ids=lambda kind: kind.__name__)
def test_a_layer_is_kept_and_fused(kind: Any) -> None:
    """It keeps the layer that it was made from, changes nothing at first, and fused computes the same in one."""
    layers: dict[str, Any] = {
        "LoRASwitchLinear": SwitchLinear(8, 6, 3, bias=False),
        "LoRAEmbedding": Embedding(5, 8),
        "DoRAEmbedding": Embedding(5, 8),
    }
    base: Any = layers.get(kind.__name__, Linear(8, 6))
    given: tuple[mx.array, ...] = (mx.array([[1, 4]]),) if isinstance(base, Embedding) else (mx.ones((1, 2, 8)),)
    if isinstance(base, SwitchLinear):
        given = (mx.ones((1, 1, 8)), mx.array([[2]]))
    layer = kind.from_base(base, r=2, scale=1.5, dropout=0.0)
    assert layer[ADAPTED[kind]] is base
    assert mx.allclose(layer(*given), base(*given), atol=1e-5)
    layer.lora_b = layer.lora_b + 0.3
    assert not mx.allclose(layer(*given), base(*given), atol=1e-3)
    assert mx.allclose(layer.fuse()(*given), layer(*given), atol=1e-5)


def test_what_cannot_be_trained_is_named() -> None:
    """By model types."""
    assert "gemma3n" in not_supported_for_training
