"""The files of a crafted checkpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors.numpy import save_file

from tests.checkpoints.chain import DEFAULT_SCRIPT, HIDDEN, ROPE_THETA, Chain, weights_of
from tests.checkpoints.families import FAMILIES, PRELUDE, marks_of
from tests.checkpoints.scripts import SCRIPTS, Script

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def build(
    path: Path, family: str = "qwen", scripts: Mapping[str, Script] = SCRIPTS, context_length: int = 4096
) -> Path:
    """Write a checkpoint that plays `scripts` to the directory `path` (made if missing); return `path`.

    `scripts` needs an entry `hello`, the default, and for tool results an entry `after`.

    Raises:
        ValueError: two transitions contradict each other, or a transition's margin is too small.
    """
    kind = FAMILIES[family]
    path.mkdir(parents=True, exist_ok=True)
    chain = Chain(kind, scripts.values())
    weights = weights_of(chain)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    eos = chain.ids[kind.eos]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HIDDEN,
        "attention_bias": True,
        "mlp_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": ROPE_THETA,
        "max_position_embeddings": context_length,
        "vocab_size": len(chain.ids),
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": eos,
        "bos_token_id": chain.ids[kind.bos] if kind.bos else None,
    }
    _write_json(path / "config.json", config)
    _write_json(path / "generation_config.json", {"eos_token_id": [eos], "do_sample": False})
    _write_json(path / "tokenizer.json", _tokenizer(chain))
    _write_json(path / "tokenizer_config.json", _tokenizer_config(chain, context_length))
    return path


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _tokenizer(chain: Chain) -> dict[str, Any]:
    """The content of tokenizer.json."""
    spoken_marks = set(marks_of(chain.family))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": chain.ids[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token not in spoken_marks,
            }
            for token in chain.added
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": chain.vocabulary,
            "merges": [],
        },
    }


def _tokenizer_config(chain: Chain, context_length: int) -> dict[str, Any]:
    family = chain.family
    opened = "".join(family.think)
    if family.opens_think:
        go = f"{{%- if thinking -%}}{{{{ '<|go:' + ns.go + '|>{family.think[0]}' }}}}{{%- else -%}}"
    else:
        go = "{%- if thinking -%}{{ '<|go:' + ns.go + '|>' }}{%- else -%}"
    closed = opened.replace(family.think[1], "\\n\\n" + family.think[1]) + "\\n\\n"
    go += f"{{{{ '{closed}<|go:' + ns.go + '!|>' }}}}{{%- endif -%}}"
    template = (PRELUDE + family.template).replace("@GO@", go)
    template = template.replace("@NAMES@", json.dumps(chain.names)).replace("@DEFAULT@", DEFAULT_SCRIPT)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": family.bos,
        "eos_token": family.eos,
        "pad_token": family.eos,
        "unk_token": None,
        "chat_template": template,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
