"""Tiny GGUF files, written with llama.cpp's own Python package from random models of mlx-lm."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import TYPE_CHECKING, Any

import gguf
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from lib_mlx.models.gguf.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FACTORS = {"short_factor": [1.0, 1.25, 1.5, 1.75, 2.0, 2.25], "long_factor": [1.0, 2.0, 4.5, 8.0, 16.0, 40.0]}
"""Of phi3's longrope, for the 12 dimensions of a head that are rotated."""
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 96, 4, 2, 16, 288
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Sample:
    """A GGUF file and the mlx-lm model whose rounded weights it holds."""

    path: Path
    model: Any
    weights: dict[str, NDArray[np.float32]]


def write_gguf(
    path: Path,
    arch: str = "llama",
    quant: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F16,
    *,
    tied: bool = True,
    metadata: dict[str, Any] | None = None,
    drop: str | None = None,
    extra: dict[str, NDArray[np.float32]] | None = None,
) -> Sample:
    """Write a random model of `arch` with its matrices in `quant`.

    `metadata` adds or replaces keys (None removes one), `drop` omits a tensor, `extra` adds some.
    """
    model = _random_model(arch, tied)
    names = _gguf_names(arch)
    writer = gguf.GGUFWriter(str(path), arch)
    for key, value in (_metadata(arch) | (metadata or {})).items():
        _put(writer, key, value)
    weights = {}
    for name, array in _parameters(model):
        module, _, suffix = name.rpartition(".")
        original = np.array(array, dtype=np.float32)
        kind = quant if original.ndim == 2 else gguf.GGMLQuantizationType.F32
        weights[name] = gguf.dequantize(gguf.quantize(original, kind), kind).astype(np.float32)
        stored = _as_llama_cpp(arch, module, weights[name] if original.ndim == 1 else original)
        if (target := f"{names[module]}.{suffix}") != drop:
            writer.add_tensor(target, gguf.quantize(stored, kind), raw_dtype=kind)
    factors = {f"rope_factors_{kind}.weight": FACTORS[f"{kind}_factor"] for kind in ("short", "long")}
    phi3 = {name: np.array(values, np.float32) for name, values in factors.items() if arch == "phi3"}
    for name, values in (phi3 | (extra or {})).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_weights([(name, mx.array(array)) for name, array in weights.items()])
    return Sample(path, model, weights)


def load_arrays(path: Path) -> dict[str, Any]:
    """What `mlx.core.load` finds in a safetensors or GGUF file."""
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return arrays


def _parameters(model: Any) -> list[tuple[str, Any]]:
    return list(tree_flatten(model.parameters()))  # type: ignore[arg-type]  # a dict only with a destination


def _layers(arch: str) -> int:
    return 6 if arch == "gemma3" else 2  # every sixth layer of gemma3 is another kind


def _put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)


def _random_model(arch: str, tied: bool) -> Any:
    module = importlib.import_module(f"mlx_lm.models.{ARCHITECTURES[arch].model_type}")
    options = {
        "model_type": ARCHITECTURES[arch].model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": _layers(arch),
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": _EPSILON,
        "vocab_size": VOCAB,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 512,
        "rope_theta": 20000.0,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 32,
        "layer_norm_eps": _EPSILON,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 128,
    }
    if arch == "phi3":
        options["rope_scaling"] = {"type": "longrope", **FACTORS}
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(options))
    if arch == "gemma3":
        model.pop("lm_head")
        model.tie_word_embeddings = True
    arrays = [(name, mx.random.normal(a.shape) * (0.3 if a.ndim == 1 else 0.05)) for name, a in _parameters(model)]
    if not arch.startswith("gemma"):
        arrays = [(name, a + 1 if name.endswith("norm.weight") else a) for name, a in arrays]
    # Exact in float16, as trained weights (bfloat16) are but for tiny ones.
    model.load_weights([(name, a.astype(mx.float16).astype(mx.float32)) for name, a in arrays])
    return model


def _gguf_names(arch: str) -> dict[str, str]:
    layer = {module: part for part, module in ARCHITECTURES[arch].layer.items()}
    names = {module: part for part, module in ARCHITECTURES[arch].top.items()}
    for number in range(_layers(arch)):
        names |= {f"model.layers.{number}.{module}": f"blk.{number}.{part}" for module, part in layer.items()}
    return names


def _as_llama_cpp(arch: str, module: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """What convert_hf_to_gguf.py does to a tensor: `permute` of llama's q and k, plus one for gemma's norms."""
    if arch.startswith("gemma") and module.endswith("norm"):
        return array + 1
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(module.rpartition(".")[2])
    if arch != "llama" or heads is None:
        return array
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte value."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


def _phi_metadata(arch: str) -> dict[str, Any]:
    if not arch.startswith("phi"):
        return {}
    factor = math.sqrt(1 + math.log(512 / 128) / math.log(128))
    longrope = {f"{arch}.rope.scaling.original_context_length": 128, f"{arch}.rope.scaling.attn_factor": factor}
    return {f"{arch}.rope.dimension_count": HEAD_DIM * 3 // 4, **(longrope if arch == "phi3" else {})}


def _metadata(arch: str) -> dict[str, Any]:
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or"]
    words = [merge.replace(" ", "") for merge in merges]
    specials = ["<|im_start|>", "<|im_end|>", "<think>"]
    tokens = [*byte_alphabet(), *words, *specials]
    tokens += [f"[unused{number}]" for number in range(VOCAB - len(tokens))]
    types = [1] * 263 + [3, 3, 4] + [5] * (VOCAB - 266)
    return {
        f"{arch}.block_count": _layers(arch),
        f"{arch}.context_length": 512,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.feed_forward_length": INNER,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.key_length": HEAD_DIM,
        f"{arch}.attention.value_length": HEAD_DIM,
        f"{arch}.attention.{'layer_norm' if arch == 'phi2' else 'layer_norm_rms'}_epsilon": _EPSILON,
        **_phi_metadata(arch),
        f"{arch}.attention.sliding_window": 32,
        f"{arch}.rope.freq_base": 20000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 263,
        "tokenizer.ggml.eos_token_id": 264,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
    }
