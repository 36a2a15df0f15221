"""Tiny random checkpoints of other vision models, with the fixture's tokenizer."""

from __future__ import annotations

import importlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

from tests.models.vision import PLAIN

if TYPE_CHECKING:
    from pathlib import Path

IMAGE, VIDEO, START = 471, 472, 468
_TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 473,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    # Adds features to the first layers' outputs, too.
    "qwen3_vl": {
        "text_config": {
            **_TEXT,
            "model_type": "qwen3_vl_text",
            "head_dim": 16,
            "rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "num_heads": 4,
            "patch_size": 16,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
        },
    },
    # As many tokens for every image, and no places of its own.
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {
            "model_type": "clip_vision_model",
            "num_hidden_layers": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 64,
        },
        "image_token_index": IMAGE,
        "image_seq_length": 16,
    },
    # Image tokens see each other in both directions, which no batch with others can do yet.
    "gemma3": {
        "text_config": {
            **_TEXT,
            "model_type": "gemma3_text",
            "head_dim": 16,
            "sliding_window_pattern": 2,
            "mm_tokens_per_image": 4,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
        },
        "image_token_index": IMAGE,
    },
}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "qwen3_vl": {"patch_size": 16, "min_pixels": 4096, "max_pixels": 1 << 20},
    "llava": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
    },
    "gemma3": {},
}


def build(path: Path, model_type: str) -> Path:
    """Write a checkpoint of `model_type` with random weights."""
    shutil.copytree(PLAIN, path, ignore=shutil.ignore_patterns("*.safetensors"))
    config: dict[str, Any] = {"model_type": model_type, "eos_token_id": 461, "vocab_size": 473}
    config |= {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    config |= CONFIGS[model_type]
    (path / "config.json").write_text(json.dumps(config))
    processor = {"processor_class": "P", **_PROCESSORS[model_type]}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    options["image_token"] = "<|image_pad|>"
    (path / "processor_config.json").write_text(json.dumps(options))
    mx.random.seed(1)
    architecture: Any = importlib.import_module(f"mlx_vlm.models.{model_type}")
    from mlx_vlm.utils import update_module_configs

    values = json.loads(json.dumps(config))
    full = update_module_configs(architecture.ModelConfig.from_dict(values), architecture, values, ["text", "vision"])
    parameters: Any = tree_flatten(architecture.Model(full).parameters())
    weights = {name: mx.random.normal(array.shape) * 0.15 if array.ndim > 1 else array for name, array in parameters}
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    return path
