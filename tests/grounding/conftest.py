"""The tiny GUI-Actor checkpoints and what PyTorch made of them (tests/fixtures/gui/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx import generation
from lib_mlx.generation import GenerationRequest, PixelBounds
from lib_mlx.grounding.actor import GroundingPrompt, GuiActor
from lib_mlx.grounding.backbone import Backbone
from lib_mlx.grounding.interface import Interface
from lib_mlx.grounding.pointer_head import load_head
from lib_mlx.grounding.screenshot import Screenshot, fetched
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_tokenizer, load_weights
from lib_mlx.models.media_reader import MediaReader

if TYPE_CHECKING:
    from collections.abc import Generator

    import mlx.core as mx
    from PIL.Image import Image

    from lib_mlx.config import CpuWeights
    from lib_mlx.grounding.pointer_head import PointerHead
    from lib_mlx.grounding.result import Grounding
    from lib_mlx.models.media_prompt import Picture
    from lib_mlx.models.vision_network import VisionNetwork

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures/gui"
MODELS = ("tiny-gui-actor-qwen2vl", "tiny-gui-actor-qwen25vl")
TRAINED = MODELS[0]
ANY_SIZE = PixelBounds()


@dataclass
class Loaded:
    """A checkpoint in memory, in this thread."""

    network: VisionNetwork
    backbone: Backbone
    head: PointerHead
    interface: Interface
    actor: GuiActor
    reader: MediaReader
    encode: Any

    def picture(self, pixels: Image, bounds: PixelBounds) -> Picture:
        """The picture as it enters the model."""
        return self.reader.picture(fetched(pixels), generation.Image(b"", bounds), GenerationRequest())

    def prompt(
        self, pixels: Image, instruction: str, bounds: PixelBounds = ANY_SIZE, max_tokens: int = 0
    ) -> tuple[GroundingPrompt, mx.array]:
        """A prompt and its picture's features."""
        entering = self.picture(pixels, bounds)
        text = self.interface.prompt(instruction, free=bool(max_tokens))
        _, media, _ = self.reader.place(self.encode(text), [entering], ())
        features = self.network.encode("image", entering.shape.tokens, self.reader.inputs(entering))
        assert entering.shape.grid is not None
        screenshot = Screenshot(entering.shape.grid, pixels.width, pixels.height)
        return GroundingPrompt(media.tokens, screenshot, max_tokens), features

    def case(self, case: dict[str, Any], max_tokens: int = 0) -> tuple[GroundingPrompt, mx.array]:
        """What a case asks."""
        bounds = PixelBounds(case["min_pixels"], case["max_pixels"])
        return self.prompt(picture(case), case["instruction"], bounds, max_tokens)

    def ground(self, pixels: Image, instruction: str) -> Grounding:
        """What an instruction means."""
        found: Grounding = outcome(self.actor.ground(*self.prompt(pixels, instruction)))
        return found


def picture(case: dict[str, Any]) -> Any:
    """The screenshot of a case."""
    from PIL import Image

    with Image.open(FIXTURES / case["file"]) as file:
        return file.convert("RGB")


@cache
def loaded(name: str) -> Loaded:
    """Load a fixture, once."""
    return load_actor(FIXTURES / "models" / name)


def load_actor(path: Path, cpu_weights: CpuWeights = "auto") -> Loaded:
    """Load a checkpoint."""
    checkpoint = inspect(path)
    network = load_weights(checkpoint, lambda _: None, lambda: False, cpu_weights).vision
    assert network is not None
    tokenizer = load_tokenizer(checkpoint)
    interface = Interface.of(checkpoint.config, tokenizer)
    backbone, head = Backbone(network), load_head(network.apart, path)
    backend = tokenizer.wrapper.backend_tokenizer
    actor = GuiActor(backbone, head, interface, lambda ids: str(backend.decode(ids, skip_special_tokens=False)))
    reader = MediaReader(checkpoint, tokenizer, network.placeholders, PixelBounds())

    def encode(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    return Loaded(network, backbone, head, interface, actor, reader, encode)


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
