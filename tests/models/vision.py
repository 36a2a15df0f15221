"""What tests of vision models share: the fixture's checkpoints and what the PyTorch reference makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from PIL import Image

from lib_mlx.engine.event_stream import ThreadEventStream
from lib_mlx.generation import Finished, GenerationRequest, Message, SamplingParams
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_weights
from lib_mlx.models.media_prompt import Span
from lib_mlx.models.upstream_vlm import load_processor
from lib_mlx.models.vision_network import MediaPlan, VisionNetwork
from lib_mlx.runtime import get_runtime
from tests.fixtures import GUI

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    import lib_mlx
    from lib_mlx.generation import Attachment

PLAIN = GUI / "models/tiny-qwen2-vl"
POINTERS = ("tiny-gui-actor-qwen2vl", "tiny-gui-actor-qwen25vl")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Reference:
    """One case of a fixture."""

    model: Path
    facts: dict[str, Any]
    tensors: dict[str, NDArray[Any]]
    images: tuple[Path, ...]
    bounds: dict[str, int]

    @property
    def tokens(self) -> list[int]:
        return [int(token) for token in self.tensors["input_ids"]]

    @property
    def grids(self) -> list[list[int]]:
        return [] if "image_grid_thw" not in self.tensors else self.tensors["image_grid_thw"].tolist()


def plain_case(name: str) -> Reference:
    """One case of `tiny-qwen2-vl`."""
    cases = json.loads((GUI / "expected/tiny-qwen2-vl.json").read_text())["cases"]
    facts = next(case for case in cases if case["name"] == name)
    images = tuple(GUI / image for image in facts["images"])
    return Reference(PLAIN, facts, _tensors(GUI / f"expected/tiny-qwen2-vl/{name}.safetensors"), images, {})


def pointer_case(model: str, name: str) -> Reference:
    """One case of a pointer model; its image is that after the first of two resizings."""
    facts: Any = json.loads((GUI / f"expected/{model}.json").read_text())
    cases = facts["cases"] if isinstance(facts, dict) else facts
    (found,) = (case for case in cases if case["name"] == name)
    shots = json.loads((GUI / "screenshots/cases.json").read_text())
    shot = next(shot for shot in (shots["cases"] if isinstance(shots, dict) else shots) if shot["name"] == name)
    return Reference(
        GUI / "models" / model,
        found,
        _tensors(GUI / f"expected/{model}/{name}.safetensors"),
        (GUI / f"expected/{model}/{name}.resized.png",),
        {"min_pixels": shot["min_pixels"], "max_pixels": shot["max_pixels"]},
    )


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    loaded: Any = mx.load(str(path))
    return {name: np.array(array) for name, array in loaded.items()}


@cache
def network(model: Path) -> VisionNetwork:
    """The network of a fixture."""
    vision = load_weights(inspect(model), lambda _: None, lambda: False).vision
    assert vision is not None
    return vision


@cache
def processor(model: Path) -> Any:
    return load_processor(inspect(model))


def encode(reference: Reference) -> MediaPlan:
    """The plan of a case's prompt, its images encoded one by one."""
    vision = network(reference.model)
    tokens, image_token = reference.tokens, vision.placeholders["image"]
    positions, delta = vision.places(tokens, reference.grids)
    spans, features, at = [], {}, 0
    for number, path in enumerate(reference.images):
        with Image.open(path) as image:
            made = processor(reference.model)(text=["<|image_pad|>"], images=[image], **reference.bounds)
        inputs = {name: value for name, value in made.items() if name not in {"input_ids", "attention_mask"}}
        piece = made["input_ids"][0].tolist()
        features[str(number)] = vision.encode("image", piece, inputs)
        start = next(index for index in range(at, len(tokens)) if tokens[index] == image_token)
        at = start + len(piece)
        spans.append(Span(start, at, str(number)))
    return MediaPlan(tuple(spans), positions, delta, features)


def request_of(*attachments: Attachment, **options: Any) -> GenerationRequest:
    """A request with these attachments, and nothing else."""
    return GenerationRequest((Message("user", parts=attachments),), **options)


def greedy_tokens(model: lib_mlx.Model, *contents: tuple[str | Attachment, ...]) -> list[list[int]]:
    """Eight tokens of each answer to questions that are asked all at once."""
    engine, running = get_runtime().engine(model._handle), []
    for parts in contents:
        text = "".join(part for part in parts if isinstance(part, str))
        asked = Message("user", text, parts=parts)
        request = GenerationRequest((asked,), sampling=SamplingParams(temperature=0), max_tokens=8)
        stream = ThreadEventStream()
        running.append((engine.submit(engine.prepare(request), stream), stream))
    for _, stream in running:
        while not any(isinstance(event, Finished) for event in stream.get()):
            pass
    return [job.made for job, _ in running]
