"""A chat model behind an OpenAI-compatible server."""

from __future__ import annotations

import base64
import http.client
import io
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lib_mlx.errors import InvalidArgument, NotFound, error_from_json

if TYPE_CHECKING:
    from PIL.Image import Image

_TIMEOUT_S = 600.0  # a large model on a slow machine


class ChatModel:
    """Asks for chat completions.

    Args:
        base_url: of the API, as OpenAI's clients are given it: "http://127.0.0.1:8642/v1".
        model: its name; None: the server's own.
        api_key: what the server asks for.

    Raises:
        InvalidArgument: that is no URL.
    """

    def __init__(self, base_url: str, model: str | None = None, api_key: str | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidArgument(
                f"{base_url!r} is no URL of a server.", hint="Give http://HOST:PORT/v1.", param="base_url"
            )
        self._parts = parts
        self._model = model
        self._api_key = api_key

    def choice(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """Return the first choice of an answer.

        Raises:
            LibMlxError: what the server refuses with; `NotFound` if it cannot be reached or does not speak OpenAI.
        """
        body = {"messages": messages, **({"model": self._model} if self._model else {}), **options}
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=_TIMEOUT_S)
        try:
            path = f"{self._parts.path.rstrip('/')}/chat/completions"
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            value = json.loads(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise NotFound(f"{self._parts.geturl()} does not answer: {error}.", hint="Is it running?") from error
        finally:
            connection.close()
        try:
            found = value["choices"][0] if answer.status < 400 else None
        except (LookupError, TypeError):
            found = None
        if isinstance(found, dict):
            return found
        error_told = value.get("error") if isinstance(value, dict) else None
        told: dict[str, Any] = error_told if isinstance(error_told, dict) else {}
        message = str(told.get("message") or f"{self._parts.geturl()} answers with status {answer.status}.")
        raise error_from_json({"code": str(told.get("code") or "not_found"), "message": message, "hint": ""})


def png_of(picture: Image) -> bytes:
    """Return a picture as PNG."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def data_url(picture: Image) -> str:
    """Return a picture as the URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png_of(picture)).decode()}"
