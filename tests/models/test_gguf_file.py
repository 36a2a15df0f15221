from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_mlx.errors import CorruptModel, LibMlxError, UnsupportedModel
from lib_mlx.models.gguf import convert_gguf
from lib_mlx.models.gguf.file import GgufFile
from tests.models.gguf_files import write_gguf

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").path.read_bytes()


def header_size(raw: bytes) -> int:
    return raw.index(b"output_norm.weight")


def test_the_header_is_read_in_full(sound: bytes, tmp_path: Path) -> None:
    """Metadata come as plain Python values, tensors with rows first."""
    path = tmp_path / "m.gguf"
    path.write_bytes(sound)
    with GgufFile(path) as file:
        assert file.metadata["llama.embedding_length"] == 64
        assert file.metadata["tokenizer.ggml.merges"][0] == "h e"
        assert file.tensors["token_embd.weight"].shape == (288, 64)
        assert len(file.data(file.tensors["token_embd.weight"])) == 288 * 64 * 2


def test_a_file_cut_anywhere_is_corrupt(sound: bytes, tmp_path: Path) -> None:
    """Truncation at any place, in the header or in the tensors, is `corrupt_model` and leaves nothing."""
    path = tmp_path / "m.gguf"
    cuts = [*range(40), *range(40, len(sound), len(sound) // 150), len(sound) - 1]
    for cut in cuts:
        path.write_bytes(sound[:cut])
        with pytest.raises(CorruptModel):
            convert_gguf(path, tmp_path / "m")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, b"GGML", CorruptModel),
        (0, b"\0\0\0\0", CorruptModel),
        (4, struct.pack("<I", 1), UnsupportedModel),
        (4, struct.pack(">I", 3), UnsupportedModel),
        (8, struct.pack("<Q", 1 << 62), CorruptModel),
        (16, struct.pack("<Q", (1 << 64) - 1), CorruptModel),
        (24, struct.pack("<Q", 1 << 40), CorruptModel),
    ],
)
def test_a_forged_header_is_refused_at_once(
    at: int, value: bytes, error: type[LibMlxError], sound: bytes, tmp_path: Path
) -> None:
    """A wrong magic or version and impossible counts are refused before memory is taken for them."""
    path = tmp_path / "m.gguf"
    path.write_bytes(sound[:at] + value + sound[at + len(value) :])
    with pytest.raises(error):
        GgufFile(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_header_crashes_the_reader(data: st.DataObject, sound: bytes, tmp_path: Path) -> None:
    """Whatever bytes of the header change, the answer is a model or an error of lib_mlx."""
    path, target = tmp_path / "m.gguf", tmp_path / "m"
    raw = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(sound) // 8))
        chunk = data.draw(st.binary(min_size=1, max_size=8))
        raw[at : at + len(chunk)] = chunk
    path.write_bytes(raw)
    try:
        convert_gguf(path, target)
    except LibMlxError:
        assert not target.exists()
    else:
        for file in target.iterdir():
            file.unlink()
        target.rmdir()


def test_an_array_of_arrays_is_bounded(tmp_path: Path) -> None:
    """Deeply nested metadata arrays are refused instead of recursed into."""
    nested = struct.pack("<IQ", 9, 1) * 500 + struct.pack("<IQI", 4, 1, 7)
    key = b"a.deep.one"
    header = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<I", 9) + nested
    path = tmp_path / "m.gguf"
    path.write_bytes(header)
    with pytest.raises(CorruptModel, match="unknown type"):
        GgufFile(path)
