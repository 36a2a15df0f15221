"""Bodies of `multipart/form-data`: the part `request` is the JSON body, the others are files it refers to.

A file is referred to as `attachment:NAME` (the part's name) wherever a URL or base64 data of an image, a sound, a video
or a file may stand, so that a host need not encode what it has in memory.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from lib_mlx.errors import InvalidArgument, InvalidJson

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.datastructures import Headers

_SCHEME = "attachment:"
_PLACES = frozenset({"url", "image_url", "video_url", "data", "file_data", "images"})
_MAX_FILES = 64


async def read_parts(headers: Headers, stream: AsyncGenerator[bytes, None], limit: int) -> tuple[bytes, dict[str, str]]:
    """Return the JSON text, and the files by name as data URLs.

    Args:
        headers: the request's.
        stream: its body, bounded.
        limit: the most bytes of a part.

    Raises:
        InvalidJson: the body is no form, is not in UTF-8, or has no part `request`.
        InvalidArgument: two files have the same name.
    """
    _, options = parse_options_header(headers.get("content-type"))
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":  # the parser would trust it with any codec of Python's
        raise InvalidJson("The form is not in UTF-8.", hint="Declare no charset.")
    try:
        form = await MultiPartParser(
            headers, stream, max_files=_MAX_FILES, max_fields=_MAX_FILES, max_part_size=limit
        ).parse()
    except MultiPartException as error:
        raise InvalidJson(f"The form cannot be read: {error.message}", hint="Send multipart/form-data.") from None
    try:
        body, files = None, {}
        for name, part in form.multi_items():
            data = await part.read() if isinstance(part, UploadFile) else part.encode()
            if name == "request" and body is None:
                body = data
                continue
            if name in files or name == "request":
                raise InvalidArgument(f"Two parts are named {name!r}.", hint="Give each file a name.", param=name)
            kind = (part.content_type if isinstance(part, UploadFile) else None) or "application/octet-stream"
            files[name] = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    finally:
        await form.close()
    if body is None:
        raise InvalidJson("The form has no part 'request'.", hint="Send the JSON body as the part 'request'.")
    return body, files


def attach(value: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    """Return `value` with its references to `files` replaced by their data.

    Raises:
        InvalidArgument: it refers to a file that is not there, or a file is not referred to.
    """
    used: set[str] = set()
    attached = _attach(value, files, used, here=False)
    if unused := files.keys() - used:
        name = min(unused)
        raise InvalidArgument(
            f"The part {name!r} is not referred to.", hint=f"Refer to it as {_SCHEME + name!r}.", param=name
        )
    return dict(attached)


def _attach(value: Any, files: dict[str, str], used: set[str], *, here: bool) -> Any:
    if isinstance(value, dict):
        return {key: _attach(item, files, used, here=key in _PLACES) for key, item in value.items()}
    if isinstance(value, list):
        return [_attach(item, files, used, here=here) for item in value]
    if not here or not isinstance(value, str) or not value.startswith(_SCHEME):
        return value
    name = value.removeprefix(_SCHEME)
    if name not in files:
        raise InvalidArgument(f"There is no part {name!r}.", hint="Send the file as a part of this name.", param=name)
    used.add(name)
    return files[name]
