"""Every binding reads what the library tells: each key of the status, and each state."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, get_args

import pytest

from lib_mlx.status import ModelState, ModelStatus, ServerState, ServerStatus
from tests.hosts.chat_program import ROOT


def part(path: str, pattern: str) -> str:
    """The part of a source that `pattern` finds."""
    found = re.search(pattern, (ROOT / path).read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{path}: {pattern}"
    return found[0]


def cpp_keys(kind: type[Any]) -> set[str]:
    """What include/lib_mlx.hpp reads."""
    name = {ModelStatus: "model", ServerStatus: "server"}[kind]
    return set(re.findall(r'json\["(\w+)"\]', part("include/lib_mlx.hpp", rf"read_{name}\(const Json.*?^}}")))


def rust_keys(kind: type[Any]) -> set[str]:
    """What the crate reads; the key of a server comes with the answer to its start."""
    started = (ROOT / "bindings/rust/lib_mlx/src/model.rs").read_text() if kind is ServerStatus else ""
    keys = set(re.findall(r'answer\["server"\]\["(\w+)"\]', started))
    return keys | set(
        re.findall(r'"(\w+)"', part("bindings/rust/lib_mlx/src/status.rs", rf"impl {kind.__name__} .*?^}}"))
    )


def swift_keys(kind: type[Any]) -> set[str]:
    """What the package reads."""
    struct = part("bindings/swift/Sources/LibMlx/Status.swift", rf"struct {kind.__name__}\b.*?^}}")
    lines = re.findall(r"case (.*)", struct.partition("CodingKeys")[2])
    cases = [case for line in lines for case in line.split(",")]
    return {case.partition("=")[2].strip(' "') or case.strip() for case in cases}


@pytest.mark.parametrize("read", [cpp_keys, rust_keys, swift_keys])
@pytest.mark.parametrize("kind", [ModelStatus, ServerStatus])
def test_every_key_of_the_status_is_read(read: Any, kind: type[Any]) -> None:
    """No binding leaves one out or reads one that is not there; Dart's are compared in test_dart.py."""
    assert read(kind) == {field.name for field in fields(kind)}


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("include/lib_mlx.hpp", r"enum class {kind} \{{.*?\}}"),
        ("bindings/rust/lib_mlx/src/status.rs", r"^    {kind} \{{.*?^    \}}"),
        ("bindings/swift/Sources/LibMlx/Status.swift", r"struct {kind}\b.*?^\}}"),
    ],
)
@pytest.mark.parametrize(("kind", "states"), [("ModelState", ModelState), ("ServerState", ServerState)])
def test_every_state_has_a_name(path: str, pattern: str, kind: str, states: Any) -> None:
    """A new state of the library gets a name in every binding."""
    words = set(re.findall(r"\w+", part(path, pattern.format(kind=kind))))
    assert set(get_args(states)) <= words
