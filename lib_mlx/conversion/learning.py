"""Quantised weights that are fitted to a text, by mlx-lm's own methods. Engine thread only."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import numpy as np
from mlx import optimizers

from lib_mlx.conversion.quantization import quantize, record
from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.models import upstream_quant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lib_mlx.conversion.config import ConvertConfig

_BATCH = 4
_RATE = 1e-6  # mlx-lm's own for distillation


def learn(
    network: Any,
    teacher: Callable[[], Any],
    checkpoint: dict[str, Any],
    config: ConvertConfig,
    pieces: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Quantise `network` so that it does on `pieces` as before; returns its config.json.

    Args:
        network: not quantised.
        teacher: makes the network again, for the method that compares with it.
        checkpoint: its config.json.
        config: the method, bits and group size.
        pieces: of text, in tokens, of one length.

    Raises:
        UnsupportedFeature: the method does not know the architecture.
        InvalidArgument: there is too little text.
    """
    if len(pieces) < 2 * _BATCH:
        raise InvalidArgument(
            f"The text has {len(pieces)} pieces; {2 * _BATCH} at least are needed.",
            hint="Give more.",
            param="text_path",
        )
    mx.random.seed(config.seed)
    tokens = mx.array(np.array(pieces, dtype=np.int32))
    with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm's methods print
        if config.learned == "gptq":
            return _gptq(network, checkpoint, config, tokens)
        if config.learned == "awq":
            return _awq(network, checkpoint, config, tokens)
        return _dwq(network, teacher(), checkpoint, config, pieces)


def _gptq(network: Any, checkpoint: dict[str, Any], config: ConvertConfig, tokens: mx.array) -> dict[str, Any]:
    bits, group_size = config.bits or 4, config.group_size or 64
    upstream_quant.gptq_quantize(
        network, tokens, bits, group_size, fallback_bits=6, fallback_group_size=64, batch_size=_BATCH
    )
    return record(network, checkpoint, config)


def _awq(network: Any, checkpoint: dict[str, Any], config: ConvertConfig, tokens: mx.array) -> dict[str, Any]:
    known = upstream_quant.AWQ_MODEL_CONFIGS
    kind = str(checkpoint.get("model_type"))
    if kind not in known:
        raise UnsupportedFeature(
            f"AWQ does not know {kind!r}, but {', '.join(sorted(known))}.", hint="Use gptq or dwq.", param="learned"
        )
    upstream_quant.awq_quantize(network, tokens, known[kind], bits=config.bits or 4, group_size=config.group_size or 64)
    return record(network, checkpoint, config)


def _dwq(
    network: Any, teacher: Any, checkpoint: dict[str, Any], config: ConvertConfig, pieces: Sequence[Sequence[int]]
) -> dict[str, Any]:
    changed = quantize(network, checkpoint, config)
    share = max(_BATCH, len(pieces) // 8)
    data = [(list(piece), 0) for piece in pieces]

    def targets(batch: mx.array, _number: int, split: str) -> mx.array:  # noqa: ARG001 - mlx-lm's interface
        return cast("mx.array", teacher(batch))

    upstream_quant.dwq_quantize(
        network,
        targets,
        optimizers.Adam(learning_rate=_RATE, bias_correction=True),
        data[share:],
        data[:share],
        batch_size=_BATCH,
        max_seq_length=len(pieces[0]) + 1,
        seed=config.seed,
        dtype=mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16,
    )
    return changed
