"""What the Anthropic endpoints share: errors, usage, ids and signatures."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib_mlx.errors import LibMlxError
    from lib_mlx.generation import Usage

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_SIGNATURE = "lib_mlx"
_IN_CUMULATIVE_USAGE = (
    "input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens", "output_tokens_details",
    "server_tool_use",
)  # fmt: skip


def error_body(error: LibMlxError, request_id: str | None) -> dict[str, Any]:
    """Return `error` in Anthropic's shape; its clients show our code as `error_code`."""
    kind = _ERROR_TYPES.get(error.http_status)
    if kind is None:
        kind = "api_error" if error.http_status >= 499 else "invalid_request_error"
    return {
        "type": "error",
        "error": {
            "type": kind,
            "message": str(error),
            "code": error.code,
            "param": error.param,
            "details": {"error_code": error.code},
        },
        "request_id": request_id,
    }


def message_usage(usage: Usage) -> dict[str, Any]:
    """Return token counts as a message has them. Writing to the cache is not counted apart: it is free."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "server_tool_use": None,
        "service_tier": "standard",
    }


def cumulative_usage(usage: Usage) -> dict[str, Any]:
    """Return token counts as the last events of a stream have them."""
    whole = message_usage(usage)
    return {name: whole[name] for name in _IN_CUMULATIVE_USAGE}


def tool_use_id(call_id: str) -> str:
    """Return the id of a tool call under Anthropic's prefix."""
    return f"toolu_{call_id.removeprefix('call_')}"


def signature(hidden: str = "") -> str:
    """Return the signature of a block of reasoning. It carries `hidden`, the text where the block does not show it."""
    return f"{_SIGNATURE}:{base64.b64encode(hidden.encode()).decode()}" if hidden else _SIGNATURE


def hidden_reasoning(signature: str) -> str:
    """Return the text that `signature` carries, "" if it is another's or carries none.

    Raises:
        ValueError: it was changed.
    """
    prefix, _, payload = signature.partition(":")
    if prefix != _SIGNATURE:
        return ""
    try:
        return base64.b64decode(payload, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("the signature was changed") from None
