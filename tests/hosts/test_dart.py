"""The Dart package, read and not run: it parses, calls the header's functions, and knows the library's keys."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lib_mlx
from lib_mlx import errors, status
from lib_mlx.server.openai import chat_request, responses_request
from tests.hosts.contract import CONFIGS, check_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bindings/dart"
SOURCES = PACKAGE / "lib/src"
FILES = sorted(path for path in PACKAGE.rglob("*.dart") if ".dart_tool" not in path.parts)
HEADER = (ROOT / "include/lib_mlx.h").read_text()

TYPES = {
    "char *": ("ffi.Pointer<ffi.Char>", "ffi.Pointer<ffi.Char>"),
    "const char *": ("ffi.Pointer<ffi.Char>", "ffi.Pointer<ffi.Char>"),
    "void *": ("ffi.Pointer<ffi.Void>", "ffi.Pointer<ffi.Void>"),
    "int64_t": ("ffi.Int64", "int"),
    "void": ("ffi.Void", "void"),
}
"""Of C, to FFI's and to Dart's."""


@dataclasses.dataclass(frozen=True)
class Function:
    """A prototype of the header."""

    name: str
    returns: str
    parameters: tuple[tuple[str, str], ...]
    """Types and names."""

    @property
    def dart(self) -> str:
        """What ffigen makes of it."""
        native, dart = TYPES[self.returns]
        natives, darts = ([TYPES[kind][of] for kind, _ in self.parameters] for of in (0, 1))
        declared = "".join(f"{kind} {name}," for kind, (_, name) in zip(darts, self.parameters, strict=True))
        passed = "".join(f"{name}," for _, name in self.parameters)
        signature = f"{native} Function({', '.join(natives)})"
        return (
            f"{dart} {self.name}({declared}) {{ return _{self.name}({passed}); }}"
            f"late final _{self.name}Ptr = _lookup<ffi.NativeFunction<{signature}>>('{self.name}');"
            f"late final _{self.name} = _{self.name}Ptr.asFunction<{dart} Function({', '.join(darts)})>();"
        )


def functions() -> list[Function]:
    """The header's prototypes, in its order."""
    found = re.findall(r"^LIB_MLX_API (.*?)(lib_mlx_\w+)\((.*?)\);", HEADER, re.MULTILINE)
    return [
        Function(name, returns.strip(), tuple(_parameter(text) for text in parameters.split(", ") if text != "void"))
        for returns, name, parameters in found
    ]


def _parameter(text: str) -> tuple[str, str]:
    kind, name = re.fullmatch(r"(.*?)(\w+)", text).groups()  # type: ignore[union-attr]
    return kind.strip(), name


def classes(file: str) -> dict[str, str]:
    """The classes of a source, by name."""
    text = (SOURCES / file).read_text()
    found = re.finditer(r"^(?:sealed |final )?class (\w+).*?^}", text, re.MULTILINE | re.DOTALL)
    return {match[1]: match[0] for match in found}


def read_keys(text: str) -> set[str]:
    """The keys of JSON that Dart code reads."""
    return set(re.findall(r"(?<!headers)\['(\w+)'\]", text))


def sent_keys(text: str) -> set[str]:
    """The keys of JSON that Dart code writes."""
    return set(re.findall(r"'(\w+)':", text))


def bare(text: str) -> str:
    """Code without its layout."""
    return re.sub(r"\s", "", text)


@pytest.fixture(scope="module")
def faults() -> Callable[[bytes], list[str]]:
    """Return a function that gives the errors and gaps in the tree of a source."""
    tree_sitter = pytest.importorskip("tree_sitter")
    dart = pytest.importorskip("tree_sitter_dart")
    parser = tree_sitter.Parser(tree_sitter.Language(dart.language()))
    return lambda source: list(_faults(parser.parse(source).root_node))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_syntax(path: Path, faults: Callable[[bytes], list[str]]) -> None:
    """Every file is Dart."""
    assert faults(path.read_bytes()) == []


def test_readme(faults: Callable[[bytes], list[str]]) -> None:
    """The README's program is Dart, and the README says that nobody has run it."""
    text = (PACKAGE / "README.md").read_text()
    (program,) = re.findall(r"^```dart\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert faults(program.encode()) == []
    assert "**It has not been run**" in text


@pytest.mark.parametrize("source", [b"void main() { print('a' }", b"class A { final int x = ; }", b"int f( => 1;"])
def test_faults_are_found(source: bytes, faults: Callable[[bytes], list[str]]) -> None:
    """What is no Dart is told apart, so that the tests above say something."""
    assert faults(source)


def _faults(node: Any) -> Iterator[str]:
    if node.is_error or node.is_missing:
        yield f"line {node.start_point[0] + 1}: {node.type}"
    for child in node.children:
        yield from _faults(child)


def test_bindings() -> None:
    """The bindings are what ffigen makes of the header: each name and each native and Dart type."""
    known = functions()
    assert len(known) == HEADER.count("\nLIB_MLX_API ")
    text = (SOURCES / "bindings.dart").read_text()
    body = bare(classes("bindings.dart")["LibMlxBindings"])
    first = body.index(bare(known[0].dart))
    assert body[first:] == bare("".join(function.dart for function in known)) + "}"
    version, abi = re.findall(r"^#define LIB_MLX_(?:ABI_)?VERSION (.*)$", HEADER, re.MULTILINE)
    assert f"const String LIB_MLX_VERSION = {version};".replace('"', "'") in text
    assert f"const int LIB_MLX_ABI_VERSION = {abi};" in text
    assert f"version: {version}\n".replace('"', "") in (PACKAGE / "pubspec.yaml").read_text()


def test_every_function_is_called() -> None:
    """No function of the header is out of Dart's reach."""
    called = set(re.findall(r"_bindings\s*\.(\w+)\(", classes("library.dart")["Library"]))
    assert called == {function.name for function in functions()}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_is_reachable(config: str) -> None:
    """Dart's configurations have the library's keys and no others; `wait` is sent by `startLoading`."""
    keys = sent_keys(classes("config.dart")[config])
    check_keys(
        config, keys | (sent_keys(classes("runtime.dart")["LibMlxRuntime"]) if config == "LoadConfig" else set())
    )


def test_answers() -> None:
    """What Dart reads of the C functions' answers is in them, and nothing of a status is left out."""
    read = {name: read_keys(text) for name, text in (classes("status.dart") | classes("errors.dart")).items()}
    kinds = (status.Status, status.ModelStatus, status.ServerStatus, status.UnloadReport)
    fields = {kind.__name__: {field.name for field in dataclasses.fields(kind)} for kind in kinds}
    assert read["Status"] == fields["Status"] - {"handle"}
    assert read["ModelStatus"] == fields["ModelStatus"]
    assert read["ServerStatus"] == fields["ServerStatus"]
    assert read["MemoryReport"] == fields["UnloadReport"]
    assert read["LibMlxException"] == set(errors.ErrorObject.__annotations__)
    in_header = set(re.findall(r'"(\w+)"', HEADER))
    others = read["LibraryVersion"] | read_keys("".join(classes("runtime.dart").values()))
    assert others | read_keys((SOURCES / "library.dart").read_text()) <= in_header


def test_codes() -> None:
    """Each code of the header has a name in Dart, and each name is a code of the library's, or announced."""
    named = set(re.findall(r"LibMlxErrorCode\(\s*'(\w+)'\)", (SOURCES / "errors.dart").read_text()))
    in_header = set(re.findall(r"^ \*     ([a-z_]+) {2,}", HEADER.partition("Error codes.")[2], re.MULTILINE))
    assert in_header
    assert in_header <= named
    in_library = set(re.findall(r'code.*= "(\w+)"', Path(errors.__file__).read_text()))
    assert named <= in_header | in_library | {"engine_died"}


def test_states() -> None:
    """The states are the library's."""
    text = (SOURCES / "status.dart").read_text()
    for name in ("ModelState", "ServerState"):
        assert set(re.findall(rf"= {name}\('(\w+)'\)", text)) == set(getattr(status, name).__args__)


def test_requests() -> None:
    """What Dart sends to the server are fields of its requests."""
    chat, responses = classes("chat.dart"), classes("responses.dart")
    calls = {*chat_request.HistoryToolCall.model_fields, *chat_request.FunctionCall.model_fields}
    assert sent_keys(chat["ChatRequest"]) <= set(chat_request.ChatRequest.model_fields)
    assert sent_keys(chat["ChatMessage"]) <= set(chat_request.ChatMessage.model_fields)
    assert sent_keys(chat["ToolCall"]) <= calls
    assert sent_keys(responses["ResponseRequest"]) <= set(responses_request.ResponsesRequest.model_fields)


def test_the_servers_answers(crafted: Path) -> None:
    """What Dart reads of the server's answers is in them."""
    with lib_mlx.load_model(str(crafted)) as model, model.start_server() as server:
        answers = _Answers(server.base_url, server.model_id)
        tool = {"type": "function", "function": {"name": "get_weather"}}
        for stream in (False, True):
            answers.chat("think", stream=stream)
            answers.chat("tool", stream=stream, tools=[tool])
        answers.chat("hello", stream=True, stream_options={"include_usage": True})
        answers.fetch("/v1/chat/completions", {"messages": [], "colour": "red"})
        answers.fetch("/v1/responses", {"model": server.model_id, "input": "think", "stream": True})
        answers.fetch("/v1/models")
        answers.fetch("/health")
    files = ("chat.dart", "responses.dart", "open_ai_client.dart")
    read = read_keys("".join((SOURCES / name).read_text() for name in files))
    read |= read_keys(classes("errors.dart")["LibMlxApiException"])
    # A request's alone.
    assert read - {"tool_call_id"} <= answers.keys


class _Answers:
    """All keys of what a server answers."""

    def __init__(self, base_url: str, model: str) -> None:
        self.keys: set[str] = set()
        self._base_url = base_url
        self._model = model

    def chat(self, script: str, **fields: Any) -> None:
        """Ask for a chat completion."""
        message = {"role": "user", "content": script}
        self.fetch("/v1/chat/completions", {"model": self._model, "messages": [message], **fields})

    def fetch(self, path: str, body: dict[str, Any] | None = None) -> None:
        """Send a request and learn the keys of its answer, refusals and streams included."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base_url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                text = refusal.read().decode()
        for found in re.findall(r"^(?:data: )?(\{.*\})$", text, re.MULTILINE):
            self._learn(json.loads(found))

    def _learn(self, value: Any) -> None:
        if isinstance(value, dict):
            self.keys |= value.keys()
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            self._learn(part)
