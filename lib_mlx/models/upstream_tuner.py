"""The one place that touches mlx-lm's tuner, which is unversioned (tests/models/test_upstream_tuner.py).

Apart from `models.upstream`: who only generates need not import it.
"""

from __future__ import annotations

from lib_mlx.models import upstream  # first: it keeps mlx-lm's import from changing the process

from mlx_lm.convert import mixed_quant_predicate_builder  # isort: skip
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear  # isort: skip
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear
from mlx_lm.tuner.trainer import grad_checkpoint
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import dequantize_model

# The layers with adapters, and where they keep the layer that they were made from.
ADAPTED = {
    LoRALinear: "linear",
    DoRALinear: "linear",
    LoRASwitchLinear: "linear",
    LoRAEmbedding: "embedding",
    DoRAEmbedding: "embedding",
}

__all__ = [
    "ADAPTED",
    "dequantize_model",
    "grad_checkpoint",
    "linear_to_lora_layers",
    "mixed_quant_predicate_builder",
    "upstream",
]
