"""Images of plain colours, to be named."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from lib_mlx.config import parse_config
from lib_mlx.training.config import TrainConfig
from tests.training.conftest import write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (40, 80, 220),
    "yellow": (240, 220, 50),
    "orange": (245, 140, 30),
    "purple": (130, 50, 170),
}
NAMES = {name: name for name in COLOURS}
OTHERS = dict(zip(NAMES, [*list(NAMES)[1:], next(iter(NAMES))], strict=True))
QUESTION = "What is this colour?"


def png(name: str, size: tuple[int, int] = (56, 56), shift: int = 0) -> bytes:
    """The file of an image of a colour, a little lighter or darker by `shift`."""
    file = io.BytesIO()
    Image.new("RGB", size, tuple(min(255, part + shift) for part in COLOURS[name])).save(file, "PNG")
    return file.getvalue()


def url(content: bytes) -> str:
    """A data URL."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def rows(folder: Path, names: dict[str, str] = NAMES) -> list[dict[str, Any]]:
    """Questions about images of several sizes, which are written to `folder`, and the answers `names` has."""
    found = []
    for name, answer in names.items():
        for shift, size in ((0, (56, 56)), (8, (84, 56)), (-8, (56, 84)), (4, (56, 56))):
            file = folder / f"{name}{shift}.png"
            file.write_bytes(png(name, size, shift))
            found.append({"image": file.name, "question": QUESTION, "answer": answer})
    return found


def told(folder: Path, name: str, model: Path, given: list[dict[str, Any]], **values: Any) -> TrainConfig:
    """How to train `model` with the rows `given`; what becomes of it is in `name` of the folder."""
    base = {
        "model_path": str(model),
        "data_path": str(write_jsonl(folder / f"{name}.jsonl", given)),
        "output_path": str(folder / name),
        "batch_size": 8,
        "validation_share": 0,
    }
    return parse_config(TrainConfig, {**base, **values})
