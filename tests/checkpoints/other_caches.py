"""Tiny random checkpoints of architectures whose caches differ from the usual one, with a crafted tokenizer."""

from __future__ import annotations

import importlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

if TYPE_CHECKING:
    from pathlib import Path

_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    # Every second layer sees the last 48 tokens only: rotating caches.
    "gemma3_text": {"sliding_window": 48, "sliding_window_pattern": 2, "query_pre_attn_scalar": 32},
    # Convolutions and attention: some layers have a state that does not grow.
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 64,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
    # No attention at all.
    "mamba2": {
        "num_heads": 4,
        "head_dim": 32,
        "intermediate_size": 128,
        "state_size": 16,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 1e9],
        "time_step_rank": 8,
    },
}


def random_checkpoint(path: Path, model_type: str, crafted: Path) -> Path:
    """Write a random checkpoint of `model_type` with the tokenizer of `crafted` to `path`. Engine thread only."""
    shutil.copytree(crafted, path)
    config = json.loads((path / "config.json").read_text())
    kept = {key: config[key] for key in ("vocab_size", "eos_token_id", "bos_token_id")}
    config = {**_COMMON, **CONFIGS[model_type], **kept, "model_type": model_type}
    (path / "config.json").write_text(json.dumps(config))
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    model = module.Model(module.ModelArgs.from_dict(config))
    mx.random.seed(7)
    weights = {}
    for name, array in tree_flatten(model.parameters()):
        # Matrices large enough that the best token wins clearly, whatever the order of summation.
        weights[name] = mx.random.normal(array.shape) * 0.25 if array.ndim > 1 else array
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    return path
