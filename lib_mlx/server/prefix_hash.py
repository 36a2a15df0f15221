"""What conversations with the same beginning have in common, for a balancer: `X-Prefix-Hash`.

A replica that has answered the beginning of a conversation has its prompt in memory. The hash is of so little that
clients can compute it themselves, and of what does not change from turn to turn.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lib_mlx.generation import GenerationRequest

HEADER = "X-Prefix-Hash"
_DIGITS = 16
_PROMPT = 256  # characters, or tokens, of a prompt without messages


def prefix_hash(request: GenerationRequest) -> str:
    """Return 16 hexadecimal digits: of SHA-256 over each message up to the first user's, as `role LF text NUL`.

    Of a prompt to be continued as it is, its first 256 characters are hashed, or tokens with spaces between them.
    """
    if request.prompt is not None:
        beginning = request.prompt[:_PROMPT]
        text = beginning if isinstance(beginning, str) else " ".join(map(str, beginning))
        return _digits(text)
    parts = []
    for message in request.messages:
        parts.append(f"{message.role}\n{message.content}\0")
        if message.role == "user":
            break
    return _digits("".join(parts))


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
