"""Whole networks of mlx-lm's families with packed weights."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

import build_ffi
from lib_mlx.engine.worker import get_worker
from lib_mlx.models import packed
from lib_mlx.models.cpu_weights import prepare_for_cpu

if TYPE_CHECKING:
    import ctypes

pytestmark = pytest.mark.skipif(not build_ffi.HAS_CPU, reason="Linux only")

CONFIG: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320, "max_position_embeddings": 512, "rope_theta": 1e4,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "attention_bias": True, "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"], "sliding_window_pattern": 2, "query_pre_attn_scalar": 32.0,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
    "num_local_experts": 4,
}  # fmt: skip


def make_network(family: str) -> Any:
    """Return a small network of the family, its weights random but always the same."""
    module = importlib.import_module(f"mlx_lm.models.{family}")
    known = inspect.signature(module.ModelArgs).parameters
    values = {key: value for key, value in CONFIG.items() if key in known}
    mx.random.seed(0)
    return module.Model(module.ModelArgs(model_type=family, **values))


def run(network: Any) -> mx.array:
    """Return the logits of two prompts and of some single tokens after them."""
    cache = make_prompt_cache(network)
    inputs = [[[5, 7, 9, 11, 13], [1, 2, 3, 4, 5]], [[6], [8]], [[300], [9]]]
    return mx.concatenate([network(mx.array(ids), cache=cache) for ids in inputs], axis=1).astype(mx.float32)


@pytest.mark.parametrize("kind", ["quantised", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "mlps"),
    [("llama", 2), ("qwen3", 2), ("gemma3_text", 2), ("olmo2", 2), ("phi3", 0), ("gpt_oss", 0), ("qwen2_moe", 2)],
)
def test_families(shim: ctypes.CDLL, family: str, mlps: int, kind: str) -> None:
    """The logits are those of the same weights in float32; all products, norms and positions are ours."""

    def work() -> tuple[float, Counter[type]]:
        network, reference = make_network(family), make_network(family)
        for each in (network, reference):
            if kind == "quantised":
                nn.quantize(each, 32, 4)
            each.set_dtype(mx.bfloat16)
        prepare_for_cpu(reference, "float32")
        expected = run(reference)
        prepare_for_cpu(network, "auto")
        mixins = Counter(type(module).__mro__[1] for module in network.modules() if isinstance(module, packed.Packed))
        difference = mx.abs(run(network) - expected).max() / mx.abs(expected).max()
        return float(difference.item()), mixins

    difference, mixins = get_worker().run(work)
    assert difference < 1e-5
    assert mixins[packed.PackedLinear] >= 8
    assert mixins[packed.PackedEmbedding] == 1
    assert mixins[packed.WholeModule] >= 5 + mlps
    assert mixins[packed.Rotation] == 2
