"""Reasoning as `encrypted_content`: a text that only the server that made it can read, and nobody can change.

For clients that keep no state on the server and send reasoning back as they got it. The same text gives the same
seal; the key is made anew with each server.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from hashlib import blake2b
from hmac import compare_digest

_TAG_BYTES = 32
_BLOCK_BYTES = blake2b.MAX_DIGEST_SIZE


class ReasoningSeal:
    """Seals texts and opens what it has sealed.

    The text's keyed digest is both its proof and what its key stream is made of (a synthetic nonce, as in RFC 5297,
    with BLAKE2b in place of AES, which Python's library has not).
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(blake2b.MAX_KEY_SIZE)

    def seal(self, text: str) -> str:
        """Return what stands for `text`."""
        data = text.encode()
        tag = self._tag(data)
        return base64.urlsafe_b64encode(tag + self._mixed(data, tag)).decode()

    def open(self, sealed: str) -> str:
        """Return the text.

        Raises:
            ValueError: it was not sealed here, or was changed.
        """
        try:
            raw = base64.b64decode(sealed, altchars=b"-_", validate=True)
        except binascii.Error as error:
            raise ValueError("not base64") from error
        tag, mixed = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        data = self._mixed(mixed, tag)
        if not compare_digest(tag, self._tag(data)):
            raise ValueError("not sealed here")
        return data.decode()

    def _tag(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=_TAG_BYTES, key=self._key, person=b"tag").digest()

    def _mixed(self, data: bytes, tag: bytes) -> bytes:
        """Return `data` combined with the key stream of `tag`: once hides it, twice shows it again."""
        blocks = range(-(-len(data) // _BLOCK_BYTES))
        stream = b"".join(
            blake2b(tag + number.to_bytes(8), key=self._key, person=b"stream").digest() for number in blocks
        )[: len(data)]
        mixed = int.from_bytes(data) ^ int.from_bytes(stream)
        return mixed.to_bytes(len(data))
