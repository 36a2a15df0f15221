"""GGUF's architectures in mlx-lm's terms: config.json, tensor names and shapes, and what llama.cpp changed.

llama.cpp permutes the rows of llama's query and key projections for its own rotary embedding, and adds one to
gemma's norms; both are undone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lib_mlx.errors import CorruptModel, UnsupportedModel

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
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture maps to an mlx-lm model type."""

    model_type: str
    class_name: str
    layer: Mapping[str, str]
    rope: Literal["llama", "neox"] = "neox"
    biases: Literal["none", "qkv", "optional"] = "none"
    norm_offset: bool = False
    head_norms: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", _LAYER, rope="llama", biases="optional"),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _LAYER, biases="qkv"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _LAYER, head_norms=True),
    "gemma": Architecture("gemma", "GemmaForCausalLM", _LAYER, norm_offset=True),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _GEMMA_LAYER, norm_offset=True),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", _GEMMA_LAYER, norm_offset=True, head_norms=True),
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
        self.config = self._config()
        self.targets = self._targets()

    def _get(self, key: str, default: Any = None) -> Any:
        value = self._meta.get(f"{self._arch_name}.{key}", default)
        if value is None:
            raise CorruptModel(f"{self._source.path} does not say {key!r}.", hint="Fetch the file again.")
        return value

    def _count(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or not 0 < value < 1 << 31:
            raise UnsupportedModel(
                f"{self._source.path} has {key} = {value!r}; one positive number is expected.",
                hint="Models whose layers differ are not supported.",
            )
        return value

    def _config(self) -> dict[str, Any]:
        heads = self._count("attention.head_count")
        hidden = self._count("embedding_length")
        embedding = self._source.tensors.get("token_embd.weight")
        if embedding is None:
            raise CorruptModel(f"{self._source.path} has no embeddings.", hint="Fetch the file again.")
        if self._get("expert_count", 0):
            raise UnsupportedModel(
                f"{self._source.path} is a mixture of experts.", hint="Use its safetensors repository instead."
            )
        head_dim = self._count("attention.key_length", hidden // heads)
        if self._get("attention.value_length", head_dim) != head_dim or self._rope_dimensions(head_dim) != head_dim:
            raise UnsupportedModel(
                f"{self._source.path} has heads of an unusual shape.", hint="Use its safetensors repository instead."
            )
        config = {
            "architectures": [self._arch.class_name],
            "model_type": self._arch.model_type,
            "hidden_size": hidden,
            "intermediate_size": self._count("feed_forward_length"),
            "num_hidden_layers": self._layers(),
            "num_attention_heads": heads,
            "num_key_value_heads": self._count("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": self._count("context_length"),
            "rms_norm_eps": _shortest(self._get("attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self._get("rope.freq_base", 10000.0)),
            "vocab_size": embedding.shape[0],
            "tie_word_embeddings": "output.weight" not in self._source.tensors,
        }
        return config | self._rope_scaling(head_dim, config) | self._extras(config)

    def _layers(self) -> int:
        """Return how many layers there are; refuses a number that would take memory for names of no tensor."""
        count = self._count("block_count")
        if count > len(self._source.tensors):
            raise CorruptModel(
                f"{self._source.path} names {count} layers, more than it has tensors.", hint="Fetch the file again."
            )
        return count

    def _rope_dimensions(self, head_dim: int) -> int:
        return self._count("rope.dimension_count", head_dim)

    def _extras(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the keys only some architectures have."""
        if self._arch_name == "llama":
            bias = "blk.0.attn_q.bias" in self._source.tensors
            return {"attention_bias": bias, "mlp_bias": "blk.0.ffn_up.bias" in self._source.tensors}
        if self._arch_name == "gemma2":
            return {
                "attn_logit_softcapping": self._get("attn_logit_softcapping", 50.0),
                "final_logit_softcapping": self._get("final_logit_softcapping", 30.0),
                "sliding_window": self._get("attention.sliding_window", 4096),
                # llama.cpp's rule: only the 27B scales by the width per head instead of the head's size.
                "query_pre_attn_scalar": config["hidden_size"] / config["num_attention_heads"]
                if config["num_hidden_layers"] == 46
                else config["head_dim"],
            }
        if self._arch_name == "gemma3":
            return {
                "sliding_window": self._get("attention.sliding_window"),
                "sliding_window_pattern": 6,
                "rope_theta": _shortest(self._get("rope.freq_base", 1_000_000.0)),
                "rope_local_base_freq": 10000.0,
                "query_pre_attn_scalar": config["hidden_size"] / config["num_attention_heads"]
                if config["num_hidden_layers"] == 62
                else config["head_dim"],
            }
        return {}

    def _rope_scaling(self, head_dim: int, config: dict[str, Any]) -> dict[str, Any]:
        kind = self._get("rope.scaling.type", "none")
        if "rope_freqs.weight" in self._source.tensors:
            return {"rope_scaling": self._llama3_scaling(head_dim, config["rope_theta"])}
        if kind == "none":
            return {}
        factor = _shortest(self._get("rope.scaling.factor"))
        original = self._get("rope.scaling.original_context_length", config["max_position_embeddings"])
        if kind == "linear":
            return {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": factor}}
        if kind == "yarn":
            yarn = {"type": "yarn", "rope_type": "yarn", "factor": factor}
            return {"rope_scaling": yarn | {"original_max_position_embeddings": original}}
        raise UnsupportedModel(
            f"{self._source.path} scales its rotary embedding by {kind!r}.",
            hint="Use the model's safetensors repository instead.",
        )

    def _llama3_scaling(self, head_dim: int, base: float) -> dict[str, Any]:
        """Recognise Llama 3's scaling, of which the file keeps only the resulting divisors."""
        tensor = self._source.tensors["rope_freqs.weight"]
        found = np.frombuffer(self._source.data(tensor), "<f4") if tensor.type == "F32" else np.zeros(1)
        factor = float(found.max())
        if found.size == head_dim // 2 and np.allclose(found, _llama3_divisors(base, head_dim, factor), rtol=1e-3):
            return {
                "type": "llama3",
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        raise UnsupportedModel(
            f"{self._source.path} has rotary divisors that are not Llama 3's.",
            hint="Use the model's safetensors repository instead.",
        )

    def _targets(self) -> dict[str, Target]:
        shapes = _shapes(self.config, self._arch)
        targets: dict[str, Target] = {}
        for name, tensor in self._source.tensors.items():
            if name == "rope_freqs.weight":
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
            return Target(_TOP[stem], suffix, subtract_one=minus) if stem in _TOP else None
        _, number, part = stem.split(".", 2)
        if part not in self._arch.layer:
            return None
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(part)
        permuted = self._arch.rope == "llama" and heads
        rows = _unpermuted(self.config[heads], self.config["head_dim"]) if permuted and heads else None
        return Target(f"model.layers.{number}.{self._arch.layer[part]}", suffix, rows, minus)


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _unpermuted(heads: int, head_dim: int) -> Array:
    """Return the order of rows that undoes llama.cpp's interleaving of each head's two halves."""
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _llama3_divisors(base: float, head_dim: int, factor: float) -> Array:
    """Compute the divisors llama.cpp writes for Llama 3.1's `rope_scaling` with its usual parameters."""
    low, high, original = 1.0, 4.0, 8192
    wavelengths = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _shapes(config: dict[str, Any], arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor the model has."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    matrices = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    biased = [name for name in matrices if _has_bias(name, config, arch)]
    norms = [name for name in set(arch.layer.values()) if name.endswith("layernorm")]
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
    layer |= {f"{name}.bias": matrices[name][:1] for name in biased} | {f"{name}.weight": (hidden,) for name in norms}
    if arch.head_norms:
        layer |= {f"self_attn.{name}_norm.weight": (config["head_dim"],) for name in "qk"}
    shapes = {
        f"model.layers.{number}.{name}": shape
        for number in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    shapes["model.embed_tokens.weight"] = (config["vocab_size"], hidden)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _has_bias(module: str, config: dict[str, Any], arch: Architecture) -> bool:
    if arch.biases == "qkv":
        return module.endswith(("q_proj", "k_proj", "v_proj"))
    kind = "attention_bias" if module.startswith("self_attn") else "mlp_bias"
    return arch.biases == "optional" and bool(config[kind])
