"""Embeddings (developers.openai.com/api/reference/resources/embeddings)."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lib_mlx.server.embedding import embed_all
from lib_mlx.server.http import JsonResponse, WireModel, read_json
from lib_mlx.server.openapi import described
from lib_mlx.server.state import state_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_MAX_INPUTS = 2048

Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class EmbeddingRequest(WireModel):
    """The body of `POST /v1/embeddings`."""

    input: Text | Tokens | Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=_MAX_INPUTS)]
    model: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    # It identifies the caller and changes nothing here, as OpenAI documents it.
    user: str | None = None

    @property
    def inputs(self) -> list[Any]:
        """The texts, or runs of tokens."""
        single = isinstance(self.input, str) or isinstance(self.input[0], int)
        return [self.input] if single else list(self.input)


@described(body=EmbeddingRequest)
async def create_embeddings(request: Request) -> Response:
    """`POST /v1/embeddings`."""
    body = await read_json(request, EmbeddingRequest)
    model, vectors, tokens = await embed_all(request, state_of(request), body.model, body.inputs, body.dimensions)
    encode = _base64 if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)} for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JsonResponse({"object": "list", "data": data, "model": model, "usage": usage})


def _base64(vector: list[float]) -> str:
    """Return `vector` as OpenAI's client unpacks it: 32-bit floats, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
