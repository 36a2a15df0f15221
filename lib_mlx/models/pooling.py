"""How a checkpoint makes one vector of a text's hidden states, as sentence-transformers writes it down.

https://sbert.net/docs/package_reference/sentence_transformer/models.html (`modules.json`, `1_Pooling/config.json`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

Mode = Literal["mean", "first", "last"]
_MODES: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class Pooling:
    """Which hidden states count, and whether the vector is given length one."""

    mode: Mode = "mean"
    normalise: bool = True


def read_pooling(path: Path) -> Pooling:
    """Return what the checkpoint at `path` says; the mean, at length one, if it says nothing of the kind."""
    config = _read(path / "1_Pooling" / "config.json")
    modes = [mode for key, mode in _MODES.items() if isinstance(config, dict) and config.get(key)]
    modules = _read(path / "modules.json")
    if not isinstance(modules, list):
        return Pooling(modes[0] if modes else "mean")
    kinds = [str(module.get("type")) for module in modules if isinstance(module, dict)]
    return Pooling(modes[0] if modes else "mean", any(kind.endswith("Normalize") for kind in kinds))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
