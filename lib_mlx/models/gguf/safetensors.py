"""Writing safetensors one tensor at a time, so that a model need not fit into memory to be converted."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from lib_mlx.models.gguf.tensors import Array

_DTYPES = {"<f4": "F32", "<f2": "F16", "<u2": "BF16", "<u4": "U32"}
_ENTRY_BYTES = 160  # an entry of the header without the tensor's name; the numbers have at most 20 digits


class SafetensorsWriter:
    """Writes `path`; the header's place is reserved for `names` and filled in at the end."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._file = path.open("wb")
        self._reserved = -(-(64 + sum(len(name.encode()) + _ENTRY_BYTES for name in names)) // 8) * 8
        self._entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
        self._file.seek(8 + self._reserved)
        self._end = 0

    def add(self, name: str, array: Array) -> None:
        """Append one tensor. uint16 is written as bfloat16."""
        data = array.tobytes()
        self._entries[name] = {
            "dtype": _DTYPES[array.dtype.str],
            "shape": list(array.shape),
            "data_offsets": [self._end, self._end + len(data)],
        }
        self._file.write(data)
        self._end += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                header = json.dumps(self._entries, separators=(",", ":")).encode()
                self._file.seek(0)
                self._file.write(struct.pack("<Q", self._reserved) + header.ljust(self._reserved))
                self._file.flush()
                os.fsync(self._file.fileno())
