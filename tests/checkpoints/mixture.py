"""A small DeepSeek V3 of random weights: latent attention, experts, a first layer without them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import deepseek_v3

from tests.checkpoints.tiny import build_tiny

if TYPE_CHECKING:
    from pathlib import Path

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}


def build_mixture(path: Path) -> Path:
    """Write it to the directory `path`; return `path`."""
    build_tiny(path)
    config = json.loads((path / "config.json").read_text())
    kept = {key: config[key] for key in config if key.startswith(("eos", "bos", "vocab", "max_position"))}
    config = {"model_type": "deepseek_v3", **kept, **_SIZES}
    (path / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    network: Any = deepseek_v3.Model(deepseek_v3.ModelArgs.from_dict(config))
    shapes = {name: array.shape for name, array in tree_flatten(network.parameters())}
    weights = {
        name: np.ones(shape) if len(shape) < 2 else random.normal(0, 0.3, shape) for name, shape in shapes.items()
    }
    arrays = {name: mx.array(weight.astype(np.float32)) for name, weight in weights.items()}
    mx.save_safetensors(str(path / "model.safetensors"), arrays, metadata={"format": "mlx"})
    return path
