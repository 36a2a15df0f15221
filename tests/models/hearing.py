"""What tests of models that hear share: a tiny random Gemma 4 with both encoders, and sounds."""

from __future__ import annotations

import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import soundfile
from mlx.utils import tree_flatten

from tests.models.vision import PLAIN

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RATE = 16_000
IMAGE, AUDIO = 471, 470
TEXT = {
    "model_type": "gemma4_text",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "vocab_size": 473,
    "vocab_size_per_layer_input": 473,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "sliding_window": 24,
    "sliding_window_pattern": 2,
    "max_position_embeddings": 4096,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
CONFIG: dict[str, Any] = {
    "model_type": "gemma4",
    "eos_token_id": 461,
    "vocab_size": 473,
    "image_token_id": IMAGE,
    "audio_token_id": AUDIO,
    "text_config": TEXT,
    "vision_config": {
        "model_type": "gemma4_vision",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 16,
        "position_embedding_size": 512,
        "default_output_length": 70,
    },
    "audio_config": {
        "model_type": "gemma4_audio",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "subsampling_conv_channels": [16, 8],
        "output_proj_dims": 48,
    },
}
_SPECIAL = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|vision_pad|>",
    "boa_token": "<|quad_start|>",
    "eoa_token": "<|quad_end|>",
    "boi_token": "<|vision_start|>",
    "eoi_token": "<|vision_end|>",
}
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'image' %}<|image_pad|>"
    "{% elif part.type == 'audio' %}<|vision_pad|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(path: Path, **text: Any) -> Path:
    """Write the checkpoint; `text` goes before what its language model is configured with."""
    from mlx_vlm.models import gemma4
    from mlx_vlm.utils import update_module_configs

    shutil.copytree(PLAIN, path, ignore=shutil.ignore_patterns("*.safetensors", "preprocessor_config.json"))
    config = {**CONFIG, "text_config": {**TEXT, **text}}
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer |= {"extra_special_tokens": _SPECIAL, "chat_template": _TEMPLATE, **_SPECIAL}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (path / "chat_template.json").write_text(json.dumps({"chat_template": _TEMPLATE}))
    processor = {"processor_class": "Gemma4Processor", "image_processor": {"max_soft_tokens": 70}}
    (path / "processor_config.json").write_text(json.dumps(processor))
    mx.random.seed(1)
    values = json.loads(json.dumps(config))
    full = update_module_configs(gemma4.ModelConfig.from_dict(values), gemma4, values, ["text", "vision", "audio"])
    parameters: Any = tree_flatten(gemma4.Model(full).parameters())
    weights = {
        name: mx.random.normal(array.shape) * 0.15 if array.ndim > 1 and "position" not in name else array
        for name, array in parameters
    }
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    return path


def tone(seconds: float, pitch: float = 440.0, rate: int = RATE) -> NDArray[np.float32]:
    """A sound that rises from `pitch`."""
    at = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * (1 + at) * at)).astype(np.float32)


def written(samples: NDArray[Any], kind: str = "WAV", rate: int = RATE, **options: Any) -> bytes:
    """The content of a file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, **options)
    return file.getvalue()
