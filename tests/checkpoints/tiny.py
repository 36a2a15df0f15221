"""A checkpoint small enough to be trained in a test: random weights, the tokenizer of the crafted ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import save_file

from tests.checkpoints.build import build

if TYPE_CHECKING:
    from pathlib import Path

_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
_HIDDEN, _HEADS, _KV_HEADS, _WIDTH, _LAYERS = 64, 4, 2, 128, 2


def build_tiny(
    path: Path,
    seed: int = 0,
    heads: int = _HEADS,
    kv_heads: int = _KV_HEADS,
    spread: float = 0.05,
    model_type: Literal["llama", "qwen2"] = "llama",
    layers: int = _LAYERS,
) -> Path:
    """Write a model of few layers to the directory `path`; return `path`.

    With a larger `spread` of its random weights it says something else at each token.
    """
    hidden, width = _HIDDEN // _HEADS * heads, _WIDTH // _HEADS * heads
    build(path)
    config = json.loads((path / "config.json").read_text())
    config |= {
        "hidden_size": hidden,
        "intermediate_size": width,
        "model_type": model_type,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": _HIDDEN // _HEADS,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
    }
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"chat_template": _TEMPLATE}))
    random = np.random.default_rng(seed)
    weights = {
        "model.embed_tokens.weight": random.normal(0, 0.3, (config["vocab_size"], hidden)),
        "model.norm.weight": np.ones(hidden),
    }
    narrow = _HIDDEN // _HEADS * kv_heads
    shapes: dict[str, Any] = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (width, hidden),
        "mlp.up_proj": (width, hidden),
        "mlp.down_proj": (hidden, width),
    }
    if model_type == "qwen2":
        biases = zip("qkv", (hidden, narrow, narrow), strict=True)
        shapes |= {f"self_attn.{name}_proj.bias": (wide,) for name, wide in biases}
    for layer in range(layers):
        for name, shape in shapes.items():
            key = name if name.endswith("bias") else f"{name}.weight"
            weights[f"model.layers.{layer}.{key}"] = random.normal(0, spread, shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(hidden)
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    save_file(arrays, path / "model.safetensors", metadata={"format": "pt"})
    return path
