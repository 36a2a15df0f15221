"""The library inside a process that runs Python already (ctypes, extension modules)."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.abi.conftest import Result, expect, run

PRELUDE = """
import ctypes, json, sys, threading
def open_library(kind=ctypes.CDLL):
    lib = kind(sys.argv[1])
    lib.lib_mlx_free.argtypes = [ctypes.c_void_p]
    lib.lib_mlx_free.restype = None
    for name, handle, config in SIGNATURES:
        function = getattr(lib, name)
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_int64] * handle + [ctypes.c_char_p] * config
    return lib
SIGNATURES = [("lib_mlx_load_model", 0, 1), ("lib_mlx_start_server", 1, 1), ("lib_mlx_server_status", 1, 0),
              ("lib_mlx_stop_server", 1, 0), ("lib_mlx_unload_model", 1, 0)]
def take(lib, pointer):
    answer = json.loads(ctypes.string_at(pointer))
    lib.lib_mlx_free(pointer)
    return answer
def code(lib):
    answer = take(lib, lib.lib_mlx_load_model(b"{}"))
    return answer["error"]["code"]
def load(lib):
    config = json.dumps({"model_path": sys.argv[2], "model_id": "crafted"}).encode()
    return take(lib, lib.lib_mlx_load_model(config))["handle"]
"""


def host(script: str, *arguments: object, python: str = sys.executable) -> Result:
    """Run a Python host; it is silent and ends by itself within seconds."""
    began = time.monotonic()
    result = run([python, "-c", PRELUDE + script, *arguments], env=dict(os.environ))
    assert time.monotonic() - began < 20
    return result


@pytest.mark.parametrize("kind", ["CDLL", "PyDLL"])
def test_first_calls_race(library: Path, kind: str) -> None:
    """Threads that call at once share the host's Python, whether they hold its lock (PyDLL) or not."""
    script = f"""
lib, answers = open_library(ctypes.{kind}), []
threads = [threading.Thread(target=lambda: answers.append(code(lib))) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert answers == ["invalid_argument"] * 8, answers
"""
    expect(host(script, library))


def test_first_call_from_a_thread_that_ends(library: Path) -> None:
    """A host whose first call came from a short-lived thread does not hang in threading's shutdown."""
    script = """
thread = threading.Thread(target=lambda: code(open_library()))
thread.start()
thread.join()
assert threading.main_thread() is threading.current_thread()
sys.exit(7)
"""
    expect(host(script, library), 7)


def test_capsules_looked_at_before(library: Path) -> None:
    """Cffi's start does not spin when the host has looked at a capsule before."""
    script = """
import datetime, inspect
dir(datetime.datetime_CAPI), hasattr(datetime.datetime_CAPI, "x"), inspect.isclass(datetime.datetime_CAPI)
assert code(open_library()) == "invalid_argument"
"""
    expect(host(script, library))


def test_host_keeps_its_streams_environment_and_handlers(library: Path) -> None:
    """In a Python that is not ours nothing is redirected or disabled."""
    script = """
import os, signal
streams, putenv, handler = (sys.stdin, sys.stdout, sys.stderr), os.putenv, signal.getsignal(signal.SIGINT)
path = list(sys.path)
assert code(open_library()) == "invalid_argument"
assert (sys.stdin, sys.stdout, sys.stderr) == streams
assert os.putenv is putenv and signal.getsignal(signal.SIGINT) is handler
assert sys.path[:len(path)] == path
"""
    expect(host(script, library))


@pytest.mark.parametrize("kind", ["CDLL", "PyDLL"])
def test_exit_while_serving(library: Path, crafted: Path, kind: str) -> None:
    """A Python host may exit with a server running and a stream under way; its code stays."""
    script = f"""
import urllib.request
lib = open_library(ctypes.{kind})
url = take(lib, lib.lib_mlx_start_server(load(lib), None))["server"]["base_url"]
body = {{"model": "crafted", "stream": True, "max_tokens": 3000, "messages": [{{"role": "user", "content": "loop"}}]}}
headers = {{"Content-Type": "application/json"}}
request = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(), headers)
stream = urllib.request.urlopen(request)
assert stream.readline().startswith(b"data: ")
sys.exit(7)
"""
    expect(host(script, library, crafted), 7)


def test_multiprocessing_child(library: Path) -> None:
    """A child that multiprocessing forked gets `forked`; the parent goes on."""
    script = """
import os
lib = open_library()
assert code(lib) == "invalid_argument"
pid = os.fork()
if not pid:
    os._exit(0 if code(lib) == "forked" else 1)
assert os.waitpid(pid, 0)[1] == 0
assert code(lib) == "invalid_argument"
"""
    expect(host(script, library))


def test_other_python_version(library: Path) -> None:
    """A Python host of a version without a backend gets `python_mismatch` at once."""
    python = _other_python(library)
    if python is None:
        pytest.skip("no other Python version here")
    expect(host('assert code(open_library()) == "python_mismatch"', library, python=python))


def test_other_build_of_the_same_version(library: Path) -> None:
    """Another build of the same Python, linked statically as Debian's, is joined; without packages it says so."""
    python = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    if not python.exists():
        pytest.skip(f"no {python} here")
    script = 'assert code(open_library()) in ("invalid_argument", "python_init")'
    expect(host(script, library, python=str(python)))


def _other_python(library: Path) -> str | None:
    """A Python 3 for which no backend has been built."""
    homes = [*Path.home().glob(".pyenv/versions/3.*/bin"), Path("/usr/bin"), Path("/usr/local/bin")]
    for minor in (10, *range(11, 16)):
        if (library.parent / f"_backend_cp3{minor}.so").exists():
            continue
        for directory in homes:
            if found := shutil.which(f"python3.{minor}", path=str(directory)):
                return found
    return None
