"""The pointer head by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from lib_mlx.grounding import pointer_head
from tests.grounding.conftest import TRAINED, loaded

if TYPE_CHECKING:
    import pytest


def test_many_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking the rows of a large image's attention in blocks changes nothing."""
    head = loaded(TRAINED).head
    patches, pointers = (mx.random.normal((count, 64), key=mx.random.key(count)) for count in (70, 2))
    whole = np.array(head.logits(patches, pointers))
    monkeypatch.setattr(pointer_head, "_ROWS", 16)
    assert np.abs(np.array(head.logits(patches, pointers)) - whole).max() < 1e-5


def test_it_computes_in_float32() -> None:
    """Whatever the language model is in."""
    patches = mx.random.normal((9, 64), key=mx.random.key(1)).astype(mx.bfloat16)
    attention = loaded(TRAINED).head.attention(patches, patches[:2])
    assert attention.dtype == mx.float32
    assert attention.shape == (2, 9)
