"""Tokens to text, one token at a time, never splitting a character.

Each token is a run of bytes; an incremental UTF-8 decoder holds back an unfinished character. Cost per token
does not depend on what came before, unlike decoding the whole sequence again.
"""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenizers import Tokenizer

_SPACE = "\u2581"  # SentencePiece's visible space


class Detokenizer(Protocol):
    """The text of one growing token sequence. Not thread-safe; one per request."""

    def feed(self, token: int) -> str:
        """Return the text that became certain with `token`, possibly empty."""

    def finish(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD."""


class ByteTable:
    """The bytes of each token of a vocabulary, worked out on demand and kept. One per model.

    `to_bytes` maps a vocabulary entry to bytes; `added` holds the added tokens, whose text is literal.
    """

    def __init__(
        self,
        id_to_token: Callable[[int], str | None],
        to_bytes: Callable[[str], bytes],
        *,
        added: Mapping[int, str],
        strip_first_space: bool = False,
    ) -> None:
        self.strip_first_space = strip_first_space
        self._id_to_token = id_to_token
        self._to_bytes = to_bytes
        self._added = added
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        known = self._known.get(token)
        if known is None:
            literal = self._added.get(token)
            # A vocabulary padded to a round size has ids without an entry; they have no text.
            piece = literal if literal is not None else self._id_to_token(token) or ""
            known = piece.encode() if literal is not None else self._to_bytes(piece)
            self._known[token] = known
        return known


class ByteDetokenizer:
    """`Detokenizer` over a `ByteTable`."""

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = table.strip_first_space

    def feed(self, token: int) -> str:
        """Return the text that became certain with `token`."""
        return self._trim(self._decoder.decode(self._table[token]))

    def finish(self) -> str:
        """Return what was held back."""
        return self._trim(self._decoder.decode(b"", final=True))

    def _trim(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class WindowDetokenizer:
    """`Detokenizer` for decoders that are not byte maps (WordPiece, CTC): decodes a sliding window of tokens."""

    _KEEP = 8  # tokens of left context: enough for every known decoder's joining rules

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._emitted = ""

    def feed(self, token: int) -> str:
        """Return the text that became certain with `token`."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if text.endswith("\ufffd"):
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """Return what was held back."""
        return self._advance(self._decode(self._tokens))

    def _advance(self, text: str) -> str:
        new = text[len(self._emitted) :]
        self._tokens = self._tokens[-self._KEEP :]
        self._emitted = self._decode(self._tokens)
        return new


def byte_level_table() -> dict[str, int]:
    """Return GPT-2's map from printable characters to bytes (openai/gpt-2, src/encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level(piece: str, *, _table: dict[str, int] = byte_level_table()) -> bytes:  # noqa: B008 - a constant
    try:
        return bytes(_table[char] for char in piece)
    except KeyError:  # an entry outside the alphabet stands for itself
        return piece.encode()


def _byte_fallback(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()


def _decoder_kinds(decoder: Mapping[str, object] | None) -> list[Mapping[str, object]]:
    if decoder is None:
        return []
    parts = decoder.get("decoders")
    return list(parts) if isinstance(parts, list) else [decoder]


@dataclass(frozen=True)
class TokenText:
    """The text of one tokenizer's tokens. Any thread."""

    detokenizer: Callable[[], Detokenizer]
    """Returns a new one, for one sequence."""
    bytes_of: Callable[[int], bytes]
    """Returns the text of one token by itself."""


def token_text(tokenizer: Tokenizer, decode: Callable[[list[int]], str]) -> TokenText:
    """Examine `tokenizer`; `decode` decodes a whole sequence and is used only where tokens are not runs of bytes."""
    state = tokenizer.decoder.__getstate__() if tokenizer.decoder is not None else b"null"
    kinds = _decoder_kinds(json.loads(state))
    names = {part["type"] for part in kinds}
    added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}
    if names == {"ByteLevel"}:
        table = ByteTable(tokenizer.id_to_token, _byte_level, added=added)
    elif names and names <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        strip = any(part["type"] == "Strip" or part.get("prepend_scheme") in {"always", "first"} for part in kinds)
        table = ByteTable(tokenizer.id_to_token, _byte_fallback, added=added, strip_first_space=strip)
    else:
        return TokenText(lambda: WindowDetokenizer(decode), lambda token: decode([token]).encode())
    return TokenText(lambda: ByteDetokenizer(table), table.__getitem__)
