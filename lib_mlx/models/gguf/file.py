"""The GGUF container: metadata and the place of each tensor, every number checked before it is used.

Read here and not by `mlx.core.load`, which turns tensor types it does not know into float16 without a word and
trusts the file's offsets: a truncated or hostile file must be an error, not a crash.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from lib_mlx.errors import CorruptModel, ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

MAGIC = b"GGUF"
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# name, elements per block, bytes per block; numbered as in ggml.h
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies. `shape` has the rows first, as in NumPy (the file has them last)."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufFile:
    """An open GGUF file: `metadata` (plain Python values, arrays as lists), `tensors`, and their bytes.

    Any thread; close it, or use it as a context manager.

    Raises:
        ModelNotFound: there is no such file.
        CorruptModel: it is not a GGUF file, or is truncated, or contradicts itself.
        UnsupportedModel: a version, byte order or tensor type this reader does not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _map_file(path)
        try:
            self.metadata, self.tensors = _Reader(path, self._map).read()
        except BaseException:
            self._map.close()
            raise

    def data(self, tensor: Tensor) -> bytes:
        """Return a copy of the tensor's bytes."""
        return self._map[tensor.offset : tensor.offset + tensor.nbytes]

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def corrupt(path: Path, what: str) -> CorruptModel:
    """Return the error for a damaged GGUF file."""
    return CorruptModel(f"{path} is not a sound GGUF file: {what}.", hint="Fetch the file again.")


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelNotFound(f"There is no file {path}.", hint="Check model_path.", param="model_path") from None
    except ValueError:  # an empty file cannot be mapped
        raise corrupt(path, "it is empty") from None
    except OSError as error:
        raise corrupt(path, f"it cannot be read ({error})") from None


class _Reader:
    """A cursor over the file; running past the end is `CorruptModel`."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = 0

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the header, the metadata and the table of tensors."""
        if self._data[:4] != MAGIC:
            raise corrupt(self._path, "it does not begin with 'GGUF'")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            raise UnsupportedModel(
                f"{self._path} is GGUF version {version if version < 1 << 16 else 'with swapped bytes'}.",
                hint="Versions 2 and 3 in little-endian order are supported; convert the file again.",
            )
        tensor_count, entry_count = self._number("Q"), self._number("Q")
        self._plausible(tensor_count, 24)
        self._plausible(entry_count, 13)
        metadata = dict(self._entry() for _ in range(entry_count))
        infos = [self._tensor() for _ in range(tensor_count)]
        return metadata, self._place(infos, metadata.get("general.alignment", _DEFAULT_ALIGNMENT))

    def _place(self, infos: list[tuple[str, str, tuple[int, ...], int, int]], alignment: object) -> dict[str, Tensor]:
        """Turn relative offsets into absolute ones, and check that every tensor lies inside the file."""
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise corrupt(self._path, f"its alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, kind, shape, offset, nbytes in infos:
            if offset % alignment or start + offset + nbytes > self._size:
                raise corrupt(self._path, f"the tensor {name!r} lies outside the file, which may be truncated")
            if name in tensors:
                raise corrupt(self._path, f"the tensor {name!r} occurs twice")
            tensors[name] = Tensor(name, kind, shape, start + offset, nbytes)
        return tensors

    def _entry(self) -> tuple[str, Any]:
        key = self._string()
        return key, self._value(self._number("I"))

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth > 1:
            raise corrupt(self._path, f"metadata of unknown type {kind}")
        item, count = self._number("I"), self._number("Q")
        if item in _SCALARS:
            return self._numbers(_SCALARS[item], count)
        self._plausible(count, 8)
        read: Callable[[], Any] = self._string if item == _STRING else lambda: self._value(item, depth + 1)
        return [read() for _ in range(count)]

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int, int]:
        name = self._string()
        rank = self._number("I")
        if not 1 <= rank <= _MAX_DIMENSIONS:
            raise corrupt(self._path, f"the tensor {name!r} has {rank} dimensions")
        shape = tuple(reversed(self._numbers("Q", rank)))
        kind, offset = self._number("I"), self._number("Q")
        if kind not in TENSOR_TYPES:
            raise UnsupportedModel(
                f"The tensor {name!r} of {self._path} has the unknown type {kind}.",
                hint="Convert the original checkpoint with `mlx_lm.convert`, or to Q8_0, Q4_0 or F16.",
            )
        label, block, block_bytes = TENSOR_TYPES[kind]
        if shape[-1] % block or 0 in shape:
            raise corrupt(self._path, f"the tensor {name!r} has the shape {shape}")
        return name, label, shape, offset, math.prod(shape) // block * block_bytes

    def _plausible(self, count: int, item_bytes: int) -> None:
        """Refuse a count that cannot fit into the rest of the file, before anything is allocated for it."""
        if count * item_bytes > self._size - self._at:
            raise corrupt(self._path, f"it counts {count} items in a place for fewer")

    def _number(self, code: str) -> Any:
        return self._numbers(code, 1)[0]

    def _numbers(self, code: str, count: int) -> list[Any]:
        size = struct.calcsize("<" + code)
        self._plausible(count, size)
        values = struct.unpack_from(f"<{count}{code}", self._data, self._at)
        self._at += size * count
        return list(values)

    def _string(self) -> str:
        length = self._number("Q")
        self._plausible(length, 1)
        text = self._data[self._at : self._at + length]
        self._at += length
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            raise corrupt(self._path, "a text in its header is not UTF-8") from None
