"""What a model's files say about it, loaded or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_mlx.grounding.interface import is_pointer_model
from lib_mlx.models import checkpoint, store

if TYPE_CHECKING:
    from pathlib import Path

    from lib_mlx.registry.slot import ModelEntry


@dataclass(frozen=True)
class ModelFacts:
    """One model on this machine."""

    family: str
    """The architecture's name."""
    weight_bytes: int
    quantization: str
    """For example "4-bit"; the data type if it is not quantised, "" if that is not said."""
    context_length: int | None
    modified: float
    """When its files changed last, in seconds since the epoch."""
    template: str
    capabilities: tuple[str, ...]
    """Of completion, vision, audio, video, grounding, tools, thinking."""
    config: dict[str, Any]


def read_facts(entry: ModelEntry) -> ModelFacts:
    """Return what is to be said of `entry`. Reads files.

    Raises:
        ModelNotFound, CorruptModel, UnsupportedModel: there is no such model, or none that could be loaded; or a
            `.gguf` file was not converted yet: looking does not take minutes and gigabytes.
    """
    path = store.resolve(entry.spec.path, entry.spec.revision, converts=False)
    inspected = checkpoint.inspect(path, trust_remote_code=entry.spec.config.trust_remote_code)
    quantization = inspected.config.get("quantization") or inspected.config.get("quantization_config") or {}
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    template = _template(path)
    if entry.engine is not None:
        capabilities = entry.engine.capabilities
    else:  # what the engine would find out from the tokenizer
        found = {
            "vision": inspected.has_towers and "image" in template,
            "audio": inspected.has_towers
            and isinstance(inspected.config.get("audio_config"), dict)
            and "audio" in template,
            "video": inspected.has_towers and "image" in template and not is_pointer_model(inspected.config),
            "grounding": inspected.has_towers and is_pointer_model(inspected.config),
            "tools": "tools" in template,
        }
        capabilities = ("completion", *(name for name, there in found.items() if there))
    return ModelFacts(
        family=inspected.model_type,
        weight_bytes=inspected.weight_bytes,
        quantization=f"{bits}-bit" if bits else str(inspected.config.get("torch_dtype") or ""),
        context_length=entry.engine.context_length if entry.engine else inspected.context_length,
        modified=(path / "config.json").stat().st_mtime,
        template=template,
        capabilities=capabilities,
        config=inspected.config,
    )


def _template(path: Path) -> str:
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        try:
            text = (path / name).read_text(encoding="utf-8")
            template = text if name.endswith(".jinja") else json.loads(text).get("chat_template")
        except (OSError, ValueError):
            continue
        if isinstance(template, str):
            return template
    return ""
