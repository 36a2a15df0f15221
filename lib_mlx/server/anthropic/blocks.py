"""The content blocks of a conversation. Kinds that this server cannot read are parsed to be refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from lib_mlx.server.fields import FunctionName
from lib_mlx.server.http import WireModel


class CacheControl(WireModel):
    """Where a prompt's cache may end. A hint: every prompt is cached as far as it goes."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(WireModel):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = None
    parsed_output: Any = None
    """Added by Anthropic's own client when it parses."""


class ImageSource(WireModel):
    """Where an image is; which fields may be set depends on `type`."""

    type: Literal["base64", "url", "file"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None


class ImageBlock(WireModel):
    """An image."""

    type: Literal["image"]
    source: ImageSource
    cache_control: CacheControl | None = None


class ThinkingBlock(WireModel):
    """Reasoning of an earlier answer, sent back."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(WireModel):
    """Reasoning that only the model of another server can read; this one makes none."""

    type: Literal["redacted_thinking"]
    data: str


class Caller(WireModel):
    """Who called a tool."""

    type: str
    tool_id: str | None = None


class ToolUseBlock(WireModel):
    """A call of a tool in an earlier answer, sent back."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: FunctionName
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: Caller | None = None
    toolset_name: str | None = None


class OtherBlock(WireModel):
    """A block of any other kind."""

    model_config = ConfigDict(extra="allow")

    type: str


def _kind(value: Any) -> str:
    """Return which class `value` is for."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return _KINDS.get(kind, "OtherBlock") if isinstance(kind, str) else "OtherBlock"


def _text_or_other(value: Any) -> str:
    return "TextBlock" if _kind(value) == "TextBlock" else "OtherBlock"


TextOrOther = Annotated[
    Annotated[TextBlock, Tag("TextBlock")] | Annotated[OtherBlock, Tag("OtherBlock")], Discriminator(_text_or_other)
]


def _result_part(value: Any) -> str:
    kind = _kind(value)
    return kind if kind in {"TextBlock", "ImageBlock"} else "OtherBlock"


ResultPart = Annotated[
    Annotated[TextBlock, Tag("TextBlock")]
    | Annotated[ImageBlock, Tag("ImageBlock")]
    | Annotated[OtherBlock, Tag("OtherBlock")],
    Discriminator(_result_part),
]


class ToolResultBlock(WireModel):
    """What came of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[ResultPart] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: str | None = None


_KINDS = {
    "text": "TextBlock",
    "image": "ImageBlock",
    "thinking": "ThinkingBlock",
    "redacted_thinking": "RedactedThinkingBlock",
    "tool_use": "ToolUseBlock",
    "tool_result": "ToolResultBlock",
}
Block = TextBlock | ImageBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock | OtherBlock
AnyBlock = Annotated[
    Annotated[TextBlock, Tag("TextBlock")]
    | Annotated[ImageBlock, Tag("ImageBlock")]
    | Annotated[ThinkingBlock, Tag("ThinkingBlock")]
    | Annotated[RedactedThinkingBlock, Tag("RedactedThinkingBlock")]
    | Annotated[ToolUseBlock, Tag("ToolUseBlock")]
    | Annotated[ToolResultBlock, Tag("ToolResultBlock")]
    | Annotated[OtherBlock, Tag("OtherBlock")],
    Discriminator(_kind),
]


class InputMessage(WireModel):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[AnyBlock]
