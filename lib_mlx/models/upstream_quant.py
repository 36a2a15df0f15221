"""The one place that touches mlx-lm's learned quantisation, which is unversioned.

tests/conversion/test_conversion.py runs all of it.
"""

from __future__ import annotations

from lib_mlx.models import upstream  # first: it keeps mlx-lm's import from changing the process

from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize  # isort: skip
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.quant.gptq import gptq_quantize

__all__ = ["AWQ_MODEL_CONFIGS", "awq_quantize", "dwq_quantize", "gptq_quantize", "upstream"]
