"""The metadata of a GGUF file's architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import CorruptModel, UnsupportedModel

if TYPE_CHECKING:
    from lib_mlx.models.gguf.file import GgufFile


class Keys:
    """The keys of `source` that begin with the architecture's name."""

    def __init__(self, source: GgufFile, architecture: str) -> None:
        self.source = source
        self._architecture = architecture

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value; raises CorruptModel if it is not there and no default is given."""
        value = self.source.metadata.get(f"{self._architecture}.{key}", default)
        if value is None:
            raise CorruptModel(f"{self.source.path} does not say {key!r}.", hint="Fetch the file again.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number, of a float32 the shortest decimal that is the same; raises CorruptModel as `get` does."""
        value = self.get(key, default)
        if not isinstance(value, int | float):
            raise CorruptModel(f"{self.source.path} has {key} = {value!r}, no number.", hint="Fetch the file again.")
        return shortest(value)

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive number; raises UnsupportedModel if it is something else."""
        value = self.get(key, default)
        if not isinstance(value, int) or not 0 < value < 1 << 31:
            raise UnsupportedModel(
                f"{self.source.path} has {key} = {value!r}; one positive number is expected.",
                hint="Models whose layers differ are not supported.",
            )
        return value


def shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
