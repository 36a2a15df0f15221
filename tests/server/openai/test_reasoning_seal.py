"""Sealed reasoning."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_mlx.server.openai.reasoning_seal import ReasoningSeal

SEAL = ReasoningSeal()


@given(st.text(max_size=300))
def test_what_was_sealed_can_be_opened(text: str) -> None:
    """The same text gives the same seal, and shows nothing of itself."""
    sealed = SEAL.seal(text)
    assert SEAL.open(sealed) == text
    assert SEAL.seal(text) == sealed
    assert len(text) < 8 or text.encode() not in base64.urlsafe_b64decode(sealed)


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_nothing_else_can(raw: bytes) -> None:
    """Neither noise, nor text, nor another server's seal, nor a changed one."""
    for wrong in (raw.decode("latin-1"), base64.urlsafe_b64encode(raw).decode()):
        with pytest.raises(ValueError, match=r"."):
            SEAL.open(wrong)
    with pytest.raises(ValueError, match="not sealed here"):
        ReasoningSeal().open(SEAL.seal("secret"))


@given(st.integers(0, 37), st.integers(1, 255))
def test_a_changed_seal_is_noticed(place: int, change: int) -> None:
    """Whichever byte was changed."""
    raw = bytearray(base64.urlsafe_b64decode(SEAL.seal("secret")))
    raw[place] ^= change
    with pytest.raises(ValueError, match="not sealed here"):
        SEAL.open(base64.urlsafe_b64encode(raw).decode())
