"""Tokens to text without splitting characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from lib_mlx.engine.detokenizer import byte_level_table, token_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lib_mlx.engine.detokenizer import Detokenizer


def byte_level() -> Tokenizer:
    """A byte-level vocabulary: 256 bytes, and `<think>` as an added token."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_level_table(), merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<think>", "<|fin é|>"])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """A SentencePiece-like vocabulary with byte fallback."""
    pieces = ["<unk>", "▁Hi", "▁there", "ly", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def wordpiece() -> Tokenizer:
    """A WordPiece vocabulary, whose tokens are not runs of bytes."""
    pieces = ["[UNK]", "play", "##ing", "chess"]
    tokenizer = Tokenizer(models.WordPiece(vocab={piece: index for index, piece in enumerate(pieces)}))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def make(tokenizer: Tokenizer) -> Detokenizer:
    """A fresh detokenizer of `tokenizer`."""
    return token_text(tokenizer, lambda ids: tokenizer.decode(ids, skip_special_tokens=False)).detokenizer()


def text_of(detokenizer: Detokenizer, tokens: Iterable[int]) -> str:
    """Feed everything."""
    return "".join(detokenizer.feed(token) for token in tokens) + detokenizer.finish()


@given(st.binary(max_size=40))
def test_any_bytes_decode_as_utf8_with_replacement(data: bytes) -> None:
    """Byte-level tokens of any bytes give what UTF-8 with U+FFFD gives."""
    assert text_of(make(byte_level()), data) == data.decode("utf-8", "replace")


@given(st.text(max_size=20))
def test_no_character_is_split(text: str) -> None:
    """What is emitted after each token is a whole number of characters."""
    detokenizer = make(byte_level())
    emitted = ""
    for byte in text.encode():
        emitted += detokenizer.feed(byte)
        assert text.startswith(emitted)
    assert emitted == text


def test_added_tokens_are_literal() -> None:
    """Markers come through as they are."""
    assert text_of(make(byte_level()), [256, 65, 257]) == "<think>A<|fin é|>"


def test_an_id_beyond_the_vocabulary_has_no_text() -> None:
    """Padded vocabularies have ids without an entry."""
    assert text_of(make(byte_level()), [65, 99_999, 66]) == "AB"


@pytest.mark.parametrize("tokens", [[1, 2, 3], [1, 4 + 0xC3, 4 + 0xA9], [3, 1]])
def test_sentencepiece_agrees_with_the_library(tokens: list[int]) -> None:
    """Spaces and byte fallback come out as Hugging Face decodes them."""
    tokenizer = sentencepiece()
    assert text_of(make(tokenizer), tokens) == tokenizer.decode(tokens)


def test_wordpiece_is_decoded_in_a_window() -> None:
    """Decoders that join tokens by rules agree with decoding the whole."""
    tokenizer = wordpiece()
    tokens = [3, 1, 2] * 10
    assert text_of(make(tokenizer), tokens) == tokenizer.decode(tokens)
