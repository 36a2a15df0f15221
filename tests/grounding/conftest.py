"""The tiny GUI-Actor checkpoints and what PyTorch made of them (tests/fixtures/gui/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlx_vlm.utils import load

from lib_mlx.grounding.actor import GroundingPrompt, GuiActor
from lib_mlx.grounding.backbone import Backbone
from lib_mlx.grounding.interface import Interface
from lib_mlx.grounding.pointer_head import load_head
from lib_mlx.grounding.screenshot import read_screenshot
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.image_size import PixelBounds
from lib_mlx.models.loader import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Generator

    from lib_mlx.grounding.pointer_head import PointerHead

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures/gui"
MODELS = ("tiny-gui-actor-qwen2vl", "tiny-gui-actor-qwen25vl")
TRAINED = MODELS[0]


@dataclass
class Loaded:
    """A checkpoint in memory."""

    name: str
    network: Any
    backbone: Backbone
    head: PointerHead
    interface: Interface
    actor: GuiActor
    encode: Any
    image_processor: Any

    def prompt(self, case: dict[str, Any], *, max_tokens: int = 0) -> GroundingPrompt:
        """What a case asks."""
        bounds = PixelBounds(case["min_pixels"], case["max_pixels"])
        screenshot = read_screenshot(picture(case), self.image_processor, bounds)
        text = self.interface.prompt(case["instruction"], patches=screenshot.patches, free=bool(max_tokens))
        return GroundingPrompt(self.encode(text), screenshot, max_tokens)


def picture(case: dict[str, Any]) -> Any:
    """The screenshot of a case."""
    from PIL import Image

    with Image.open(FIXTURES / case["file"]) as file:
        return file.convert("RGB")


@cache
def loaded(name: str) -> Loaded:
    """Load a fixture, once."""
    return load_actor(FIXTURES / "models" / name)


def load_actor(path: Path) -> Loaded:
    """Load a checkpoint."""
    network, processor = load(str(path), strict=False)
    checkpoint = inspect(path)
    tokenizer = load_tokenizer(checkpoint)
    interface = Interface.of(checkpoint.config, tokenizer)
    backbone, head = Backbone(network), load_head(path)
    backend = tokenizer.wrapper.backend_tokenizer
    actor = GuiActor(backbone, head, interface, lambda ids: str(backend.decode(ids, skip_special_tokens=False)))

    def encode(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    return Loaded(path.name, network, backbone, head, interface, actor, encode, processor.image_processor)


@cache
def cases(name: str) -> dict[str, dict[str, Any]]:
    """What PyTorch gave, by case."""
    expected = json.loads((FIXTURES / f"expected/{name}.json").read_text())
    return {case["name"]: case for case in expected["cases"]}


def tensors(name: str, case: str) -> dict[str, np.ndarray]:
    """PyTorch's tensors of a case."""
    import mlx.core as mx

    read: Any = mx.load(str(FIXTURES / f"expected/{name}/{case}.safetensors"))
    return {key: np.array(value) for key, value in read.items()}


def outcome(steps: Generator[int, None, Any]) -> Any:
    """What steps end with."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
