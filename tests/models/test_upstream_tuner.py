"""What lib_mlx needs of mlx-lm's tuner. A failure here means: mlx-lm changed, read its notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx_lm.models.switch_layers import SwitchLinear

from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_network
from lib_mlx.models.upstream_tuner import (
    ADAPTED,
    dequantize_model,
    grad_checkpoint,
    linear_to_lora_layers,
    mixed_quant_predicate_builder,
)
from tests.checkpoints.tiny import build_tiny

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS = {"rank": 2, "scale": 1.5, "dropout": 0.0}


def check_layer(kind: Any, part: str, experts: Any) -> None:
    """A layer with an adapter keeps the one it was made from, changes nothing at first, and is one when it is fused."""
    layers: dict[str, Any] = {
        "LoRASwitchLinear": experts,
        "LoRAEmbedding": Embedding(5, 8),
        "DoRAEmbedding": Embedding(5, 8),
    }
    base: Any = layers.get(kind.__name__, Linear(8, 6))
    given: tuple[mx.array, ...] = (mx.array([[1, 4]]),) if isinstance(base, Embedding) else (mx.ones((1, 2, 8)),)
    if base is experts:
        given = (mx.ones((1, 1, 8)), mx.array([[2]]))
    layer = kind.from_base(base, r=2, scale=1.5, dropout=0.0)
    assert layer[part] is base
    assert mx.allclose(layer(*given), base(*given), atol=1e-5)
    layer.lora_b = layer.lora_b + 0.3
    assert not mx.allclose(layer(*given), base(*given), atol=1e-3)
    assert mx.allclose(layer.fuse()(*given), layer(*given), atol=1e-5)


@pytest.mark.parametrize("kind", ADAPTED, ids=lambda kind: kind.__name__)
def test_a_layer_is_kept_and_fused(kind: Any) -> None:
    """See `check_layer`."""
    check_layer(kind, ADAPTED[kind], SwitchLinear(8, 6, 3, bias=False))


@pytest.fixture
def network(tmp_path: Path) -> Any:
    """A small network."""
    return load_network(inspect(build_tiny(tmp_path / "tiny")))[0]


def test_which_layers_have_adapters(network: Any) -> None:
    """All linear ones of the last so many layers, which are all with -1."""
    linear = {name for name, module in network.named_modules() if isinstance(module, Linear) and "layers" in name}
    linear_to_lora_layers(network, 1, dict(PARAMETERS))
    adapted = {name for name, module in network.named_modules() if type(module) in ADAPTED}
    assert adapted == {name for name in linear if ".1." in name}


def test_a_checkpointed_layer_computes_the_same(network: Any) -> None:
    """Its class is changed in place, for the whole process."""
    before = network(mx.array([[1, 2, 3]]))
    kind = type(network.layers[0])
    plain = kind.__call__
    try:
        grad_checkpoint(network.layers[0])
        assert mx.array_equal(network(mx.array([[1, 2, 3]])), before)
    finally:
        kind.__call__ = plain


def test_recipes_and_back(network: Any) -> None:
    """A recipe gives each layer its bits, or none; quantised layers become ordinary ones again."""
    from mlx import nn

    predicate = mixed_quant_predicate_builder("mixed_3_6", network)
    bits = {
        told["bits"]
        for name, module in network.named_modules()
        if isinstance(module, Linear) and isinstance(told := predicate(name, module), dict)
    }
    assert bits == {3, 6}
    nn.quantize(network, group_size=32, bits=8)
    dequantize_model(network)
    assert not any("Quantized" in type(module).__name__ for _, module in network.named_modules())
