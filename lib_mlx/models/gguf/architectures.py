"""GGUF's architectures in mlx-lm's terms: config.json, tensor names and shapes, and what llama.cpp changed.

llama.cpp permutes the rows of llama's query and key projections for its own rotary embedding, and adds one to
gemma's norms; both are undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lib_mlx.errors import CorruptModel, UnsupportedModel
from lib_mlx.models.gguf.keys import Keys
from lib_mlx.models.gguf.rope import ROPE_TENSORS, rope_scaling, share_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lib_mlx.models.gguf.file import GgufFile
    from lib_mlx.models.gguf.tensors import Array

_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_GEMMA_LAYER = {
    **_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3_LAYER = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_PHI2_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
    "attn_norm": "input_layernorm",
}


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture maps to an mlx-lm model type."""

    model_type: str
    class_name: str
    layer: Mapping[str, str]
    rope: Literal["llama", "neox"] = "neox"
    biases: Literal["none", "qkv", "optional", "all"] = "none"
    norm_offset: bool = False
    head_norms: bool = False
    final_norm: str = "norm"
    partial_rope: bool = False
    """Whether a part of each head alone may be rotated."""
    scalings: frozenset[str] = frozenset({"linear", "yarn", "llama3"})
    """Those of the rotary embedding that mlx-lm has for it; it passes over all others."""

    @property
    def top(self) -> Mapping[str, str]:
        """The names of what stands outside the layers."""
        return {"token_embd": "model.embed_tokens", "output_norm": f"model.{self.final_norm}", "output": "lm_head"}


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", _LAYER, rope="llama", biases="optional"),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _LAYER, biases="qkv"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _LAYER, head_norms=True),
    "gemma": Architecture("gemma", "GemmaForCausalLM", _LAYER, norm_offset=True, scalings=frozenset()),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _GEMMA_LAYER, norm_offset=True, scalings=frozenset()),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", _GEMMA_LAYER, norm_offset=True, head_norms=True),
    "phi2": Architecture(
        "phi",
        "PhiForCausalLM",
        _PHI2_LAYER,
        biases="all",
        final_norm="final_layernorm",
        partial_rope=True,
        scalings=frozenset(),
    ),
    "phi3": Architecture(
        "phi3", "Phi3ForCausalLM", _PHI3_LAYER, partial_rope=True, scalings=frozenset({"linear", "longrope"})
    ),
}


@dataclass(frozen=True)
class Target:
    """What becomes of one tensor: its name without suffix, `weight` or `bias`, and the change to its rows."""

    module: str
    suffix: str
    rows: Array | None = None
    subtract_one: bool = False

    @property
    def name(self) -> str:
        """The full name in the MLX checkpoint."""
        return f"{self.module}.{self.suffix}"


class Plan:
    """The whole conversion of one file: `config` and a `Target` for each tensor that is kept.

    Raises:
        UnsupportedModel: the architecture, its rotary scaling or one of its tensors is not known here.
        CorruptModel: a tensor is missing or its shape contradicts the metadata.
    """

    def __init__(self, source: GgufFile) -> None:
        self._source = source
        self._meta = source.metadata
        name = self._meta.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise UnsupportedModel(
                f"{source.path} has the architecture {name!r}, which cannot be converted from GGUF.",
                hint=f"Supported: {', '.join(ARCHITECTURES)}. Use the model's safetensors repository instead.",
            )
        if self._meta.get("split.count", 1) > 1:
            raise UnsupportedModel(
                f"{source.path} is one part of a split model.", hint="Join it with `llama-gguf-split --merge`."
            )
        self._arch_name, self._arch = name, ARCHITECTURES[name]
        self._keys = Keys(source, name)
        self.config = self._config()
        self.targets = self._targets()

    def _config(self) -> dict[str, Any]:
        heads = self._keys.count("attention.head_count")
        hidden = self._keys.count("embedding_length")
        embedding = self._source.tensors.get("token_embd.weight")
        if embedding is None:
            raise CorruptModel(f"{self._source.path} has no embeddings.", hint="Fetch the file again.")
        if self._keys.get("expert_count", 0):
            raise UnsupportedModel(
                f"{self._source.path} is a mixture of experts.", hint="Use its safetensors repository instead."
            )
        head_dim = self._keys.count("attention.key_length", hidden // heads)
        rotated = self._keys.count("rope.dimension_count", head_dim)
        whole = rotated == head_dim or (self._arch.partial_rope and rotated < head_dim)
        if self._keys.get("attention.value_length", head_dim) != head_dim or not whole:
            raise UnsupportedModel(
                f"{self._source.path} has heads of an unusual shape.", hint="Use its safetensors repository instead."
            )
        config = {
            "architectures": [self._arch.class_name],
            "model_type": self._arch.model_type,
            "hidden_size": hidden,
            "intermediate_size": self._keys.count("feed_forward_length"),
            "num_hidden_layers": self._layers(),
            "num_attention_heads": heads,
            "num_key_value_heads": self._keys.count("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": self._keys.count("context_length"),
            "rope_theta": self._keys.number("rope.freq_base", 10000.0),
            "vocab_size": embedding.shape[0],
            "tie_word_embeddings": "output.weight" not in self._source.tensors,
        }
        if self._arch.partial_rope:
            config["partial_rotary_factor"] = share_of(rotated, head_dim)
        if self._arch_name == "phi2":
            config["layer_norm_eps"] = self._keys.number("attention.layer_norm_epsilon")
        else:
            config["rms_norm_eps"] = self._keys.number("attention.layer_norm_rms_epsilon")
        return config | self._scaling(rotated, config) | self._extras(config)

    def _scaling(self, rotated: int, config: dict[str, Any]) -> dict[str, Any]:
        found = rope_scaling(self._keys, rotated, config)
        if found and found["rope_scaling"]["rope_type"] not in self._arch.scalings:
            raise UnsupportedModel(
                f"{self._source.path} scales its rotary embedding by {found['rope_scaling']['rope_type']!r}, "
                f"which mlx-lm does not do for {self._arch.model_type}.",
                hint="Use the model's safetensors repository instead.",
            )
        return found

    def _layers(self) -> int:
        """Return how many layers there are; refuses a number that would take memory for names of no tensor."""
        count = self._keys.count("block_count")
        if count > len(self._source.tensors):
            raise CorruptModel(
                f"{self._source.path} names {count} layers, more than it has tensors.", hint="Fetch the file again."
            )
        return count

    def _extras(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the keys only some architectures have."""
        if self._arch_name == "llama":
            bias = "blk.0.attn_q.bias" in self._source.tensors
            return {"attention_bias": bias, "mlp_bias": "blk.0.ffn_up.bias" in self._source.tensors}
        if self._arch_name == "gemma2":
            return {
                "attn_logit_softcapping": self._keys.get("attn_logit_softcapping", 50.0),
                "final_logit_softcapping": self._keys.get("final_logit_softcapping", 30.0),
                "sliding_window": self._keys.get("attention.sliding_window", 4096),
                # llama.cpp's rule: only the 27B scales by the width per head instead of the head's size.
                "query_pre_attn_scalar": config["hidden_size"] / config["num_attention_heads"]
                if config["num_hidden_layers"] == 46
                else config["head_dim"],
            }
        if self._arch_name == "gemma3":
            return {
                "sliding_window": self._keys.get("attention.sliding_window"),
                "sliding_window_pattern": 6,
                "rope_theta": self._keys.number("rope.freq_base", 1_000_000.0),
                "rope_local_base_freq": 10000.0,
                "query_pre_attn_scalar": config["hidden_size"] / config["num_attention_heads"]
                if config["num_hidden_layers"] == 62
                else config["head_dim"],
            }
        return {}

    def _targets(self) -> dict[str, Target]:
        shapes = _shapes(self.config, self._arch)
        targets: dict[str, Target] = {}
        for name, tensor in self._source.tensors.items():
            if name in ROPE_TENSORS:
                continue
            target = self._target(name)
            expected = shapes.pop(target.name, None) if target else None
            if target is None or expected is None:
                raise UnsupportedModel(
                    f"{self._source.path} holds the tensor {name!r}, unknown to {self._arch.model_type}.",
                    hint="Use the model's safetensors repository instead.",
                )
            if tensor.shape != expected:
                raise CorruptModel(
                    f"The tensor {name!r} of {self._source.path} has the shape {tensor.shape}, not {expected}.",
                    hint="Fetch the file again.",
                )
            targets[name] = target
        if shapes:
            raise CorruptModel(f"{self._source.path} lacks a tensor for {min(shapes)}.", hint="Fetch the file again.")
        return targets

    def _target(self, name: str) -> Target | None:
        stem, _, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            return None
        minus = self._arch.norm_offset and stem.endswith("norm")
        if not stem.startswith("blk."):
            top = self._arch.top
            return Target(top[stem], suffix, subtract_one=minus) if stem in top else None
        _, number, part = stem.split(".", 2)
        if part not in self._arch.layer:
            return None
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(part)
        permuted = self._arch.rope == "llama" and heads
        rows = _unpermuted(self.config[heads], self.config["head_dim"]) if permuted and heads else None
        return Target(f"model.layers.{number}.{self._arch.layer[part]}", suffix, rows, minus)


def _unpermuted(heads: int, head_dim: int) -> Array:
    """Return the order of rows that undoes llama.cpp's interleaving of each head's two halves."""
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _shapes(config: dict[str, Any], arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor the model has."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    known = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.qkv_proj": (queries + 2 * keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.dense": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "mlp.fc1": (inner, hidden),
        "mlp.fc2": (hidden, inner),
    }
    modules = set(arch.layer.values())
    layer: dict[str, tuple[int, ...]] = {name: shape for name, shape in known.items() if name in modules}
    layer |= {name: (hidden,) for name in modules if name.endswith("layernorm")}
    if arch.head_norms:
        layer |= {f"self_attn.{name}_norm": (config["head_dim"],) for name in "qk"}
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{number}.{name}": shape
        for number in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    shapes[f"model.{arch.final_norm}"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (config["vocab_size"], hidden)
    biases = {f"{name}.bias": shape[:1] for name, shape in shapes.items() if _has_bias(name, config, arch)}
    embedding = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    return {f"{name}.weight": shape for name, shape in shapes.items()} | biases | embedding


def _has_bias(module: str, config: dict[str, Any], arch: Architecture) -> bool:
    if arch.biases == "all":
        return True
    if arch.biases == "qkv":
        return module.endswith(("q_proj", "k_proj", "v_proj"))
    kind = {"self_attn": "attention_bias", "mlp": "mlp_bias"}.get(module.rpartition(".")[0].rpartition(".")[2])
    return arch.biases == "optional" and kind is not None and bool(config[kind])
