"""The one place that touches mlx-lm's internal interfaces (pinned to 0.32; tests/models/test_upstream.py).

Public in mlx-lm are `load`, `generate` and their relatives, which own the whole process and serve one request
at a time. Everything re-exported here is module-level but unversioned.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from typing import TYPE_CHECKING, Any

from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear

from lib_mlx.models.deferred import deferred_imports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_import_lock = threading.Lock()


@contextlib.contextmanager
def _unchanged_host() -> Iterator[None]:
    """Keep `import mlx_lm` from lowering the process's descriptor limit (mlx_lm/utils.py:39).

    The limit is the host's; where it is below 4096 the import would even fail.
    """
    import resource

    with _import_lock:
        original = resource.setrlimit
        resource.setrlimit = lambda *_: None
        try:
            yield
        finally:
            resource.setrlimit = original


with _unchanged_host(), deferred_imports():
    from mlx_lm.generate import BatchGenerator, StopSequences, TextStateMachine
    from mlx_lm.models.cache import (
        KVCache,
        TokenBuffer,
        can_trim_prompt_cache,
        load_prompt_cache,
        make_prompt_cache,
        save_prompt_cache,
        trim_prompt_cache,
    )
    from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
    from mlx_lm.models.rope_utils import Llama3RoPE
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, greedy_sampler
    from mlx_lm.tokenizer_utils import TokenizerWrapper, _infer_tool_parser
    from mlx_lm.tokenizer_utils import load as load_tokenizer
    from mlx_lm.utils import load_model

# What the layers that hold quantised weights hold unquantised.
PLAIN_LAYERS = {
    QuantizedLinear: Linear,
    QuantizedEmbedding: Embedding,
    QuantizedSwitchLinear: SwitchLinear,
    QuantizedMultiLinear: MultiLinear,
}


def wrap_tokenizer(tokenizer: Any, eos_token_ids: Iterable[int] | None, tool_parser: str | None) -> TokenizerWrapper:
    """Wrap a tokenizer that is not transformers' as `load_tokenizer` wraps one that is.

    Args:
        tokenizer: what `TokenizerWrapper` asks of a tokenizer.
        eos_token_ids: the end tokens, besides the tokenizer's own.
        tool_parser: the name of mlx-lm's parser; inferred if None.
    """
    name = tool_parser or _infer_tool_parser(tokenizer)
    calls: Any = importlib.import_module(f"mlx_lm.tool_parsers.{name}") if name else None
    wrapper = TokenizerWrapper(
        tokenizer,
        lambda _: None,  # lib_mlx detokenises by itself
        eos_token_ids=eos_token_ids,
        tool_call_start=calls and calls.tool_call_start,
        tool_call_end=calls and calls.tool_call_end,
        tool_parser=calls and calls.parse_tool_call,
    )
    wrapper.has_chat_template = tokenizer.chat_template is not None
    return wrapper


__all__ = [
    "PLAIN_LAYERS",
    "BatchGenerator",
    "Embedding",
    "KVCache",
    "Linear",
    "Llama3RoPE",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "StopSequences",
    "TextStateMachine",
    "TokenBuffer",
    "TokenizerWrapper",
    "apply_min_p",
    "apply_top_k",
    "apply_top_p",
    "can_trim_prompt_cache",
    "greedy_sampler",
    "load_model",
    "load_prompt_cache",
    "load_tokenizer",
    "make_prompt_cache",
    "save_prompt_cache",
    "trim_prompt_cache",
    "wrap_tokenizer",
]
