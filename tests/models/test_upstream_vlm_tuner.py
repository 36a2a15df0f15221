"""What lib_mlx needs of mlx-vlm's tuner. A failure here means: mlx-vlm changed, read its notes."""

from __future__ import annotations

from typing import Any

import pytest
from mlx.nn.layers.linear import Linear
from mlx_vlm.models.switch_layers import SwitchLinear

from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_network
from lib_mlx.models.upstream_vlm_tuner import ADAPTED, linear_to_lora_layers, not_supported_for_training
from tests.models.test_upstream_tuner import PARAMETERS, check_layer
from tests.models.vision import PLAIN


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
    """See `check_layer`."""
    check_layer(kind, ADAPTED[kind], SwitchLinear(8, 6, 3, bias=False))


def test_what_cannot_be_trained_is_named() -> None:
    """By model types."""
    assert "gemma3n" in not_supported_for_training
