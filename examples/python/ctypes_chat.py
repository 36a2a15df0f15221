"""Talks to a model through the C library by ctypes: `ctypes_chat.py MODEL [PROMPT]`; the standard library alone.

The library joins the Python that runs this program, so lib-mlx's packages must be importable from it. (Where they are,
`import lib_mlx` is simpler; this shows what any language with a foreign function interface does.) Progress goes to
stderr, the answer to stdout. Exit status 0, or 1 after an error, whose code, message and hint go to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT = "Why is the sky blue? Answer in two sentences."
LONG_PROMPT = "loop: count from one to a thousand, in words."


class LibMlxError(Exception):
    """An error of the library or of its server."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.code: str = error.get("code") or "internal"
        self.message: str = error.get("message", "")
        self.hint: str = error.get("hint", "")
        super().__init__(f"{self.code}: {self.message} {self.hint}".rstrip())


class Library:
    """The functions of lib_mlx.h: JSON objects in, JSON objects out, errors raised.

    ctypes lets go of Python's lock during a call, so that other threads run on; those that block (load, start, stop,
    unload) do so as the header says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._library = ctypes.CDLL(os.fspath(path))
        self._library.lib_mlx_free.argtypes = [ctypes.c_void_p]
        self._library.lib_mlx_free.restype = None

    def load_model(self, **config: Any) -> int:
        """Load a model; return its handle."""
        handle: int = self._call("load_model", config=config)["handle"]
        return handle

    def start_server(self, handle: int, **config: Any) -> dict[str, Any]:
        """Start a model's server; return what describes it."""
        server: dict[str, Any] = self._call("start_server", handle, config=config)["server"]
        return server

    def stop_server(self, handle: int) -> None:
        """End its streams and close it."""
        self._call("stop_server", handle)

    def status(self, handle: int) -> dict[str, Any]:
        """Describe a model and its server; never blocks."""
        return self._call("server_status", handle)

    def unload_model(self, handle: int) -> dict[str, int]:
        """Free a model's memory; return the process's bytes before and after."""
        memory: dict[str, int] = self._call("unload_model", handle)["memory"]
        return memory

    def shutdown(self) -> None:
        """Unload every model."""
        self._call("shutdown")

    def version(self) -> dict[str, Any]:
        """Describe the library."""
        return self._call("version")

    def _call(self, name: str, *handle: int, config: dict[str, Any] | None = None) -> dict[str, Any]:
        function = self._library[f"lib_mlx_{name}"]  # an object of our own: no other thread changes its types
        # Not c_char_p, which would turn the answer into bytes and lose the pointer that is to be released.
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_int64] * len(handle) + [ctypes.c_char_p] * (config is not None)
        pointer = function(*handle, *([] if config is None else [json.dumps(config).encode()]))
        if not pointer:
            raise MemoryError
        try:
            answer: dict[str, Any] = json.loads(ctypes.string_at(pointer))
        finally:
            self._library.lib_mlx_free(pointer)
        if not answer["ok"]:
            raise LibMlxError(answer["error"])
        return answer


@contextlib.contextmanager
def chat(port: int, prompt: str, max_tokens: int) -> Iterator[Iterator[dict[str, Any]]]:
    """Stream a chat completion's chunks. Leaving the block closes the connection, which cancels the request."""
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    try:
        if response.status != 200:
            raise LibMlxError(json.load(response)["error"])
        yield _chunks(response)
    finally:
        response.close()
        connection.close()


def _chunks(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: {"):
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                raise LibMlxError(chunk["error"])
            yield chunk


def _text(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def stream(port: int, prompt: str) -> None:
    """Print an answer as it comes, then how fast it came."""
    sent, first, tokens = time.monotonic(), 0.0, 0
    with chat(port, prompt, 256) as chunks:
        for chunk in chunks:
            if text := _text(chunk):
                first = first or time.monotonic() - sent
                print(text, end="", flush=True)
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    print(f"\n\n{tokens} tokens, first token after {first:.2f} s")


def in_flight(port: int) -> int:
    """Return how many requests run or wait."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/health")
    count: int = json.load(connection.getresponse())["in_flight"]
    connection.close()
    return count


def cancel(port: int) -> None:
    """Leave a long answer in its middle; the server ends it."""
    with chat(port, LONG_PROMPT, 3000) as chunks:
        next(filter(_text, chunks))
        print(f"a long answer: in flight {in_flight(port)}", end=", ")
    until = time.monotonic() + 10
    while in_flight(port) and time.monotonic() < until:
        time.sleep(0.02)
    print(f"cancelled: in flight {in_flight(port)}")


def wait_until_ready(library: Library, handle: int) -> None:
    """Show how the load goes on."""
    shown = -1.0
    while (model := library.status(handle)["model"])["status"] == "loading":
        if model["progress"] != shown and model["stage"]:
            print(f"loading: {100 * model['progress']:.0f} % ({model['stage']})", file=sys.stderr)
        shown = model["progress"]
        time.sleep(0.02)
    if model["error"]:
        raise LibMlxError(model["error"])


def run(library: Library, path: str, prompt: str) -> None:
    """Load, serve, stream, cancel, stop, unload."""
    handle = library.load_model(model_path=path, model_id="chat", wait=False)
    wait_until_ready(library, handle)
    port = library.start_server(handle)["port"]
    stream(port, prompt)
    cancel(port)
    library.stop_server(handle)
    memory = library.unload_model(handle)
    print(f"unloaded: {memory['before_bytes'] // 10**6} MB, then {memory['after_bytes'] // 10**6} MB")


def default_library() -> Path:
    """Return LIB_MLX_LIBRARY, else the library of the checkout."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    checkout = Path(__file__).resolve().parents[2] / "lib_mlx" / f"liblib_mlx.{suffix}"
    return Path(os.environ.get("LIB_MLX_LIBRARY", checkout))


def main() -> int:
    """Run the program."""
    if len(sys.argv) not in {2, 3}:
        print("usage: ctypes_chat.py MODEL [PROMPT]", file=sys.stderr)
        return 1
    try:
        run(Library(default_library()), sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else PROMPT)
    except (LibMlxError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
