"""The one place that touches mlx-vlm's tuner, which is unversioned (tests/models/test_upstream_vlm_tuner.py).

Its layers are mlx-lm's in all but the layers of experts that they know, which are mlx-vlm's own.
"""

from __future__ import annotations

from mlx_vlm.trainer import not_supported_for_training
from mlx_vlm.trainer.peft import (
    DoRAEmbedding,
    DoRALinear,
    LoRAEmbedding,
    LoRALinear,
    LoRASwitchLinear,
    linear_to_lora_layers,
)

# The layers with adapters, and where they keep the layer that they were made from.
ADAPTED = {
    LoRALinear: "linear",
    DoRALinear: "linear",
    LoRASwitchLinear: "linear",
    LoRAEmbedding: "embedding",
    DoRAEmbedding: "embedding",
}

__all__ = ["ADAPTED", "linear_to_lora_layers", "not_supported_for_training"]
