"""Local language models inside an app.

    import lib_mlx

    with lib_mlx.load_model("path/to/model") as model:
        print(model.generate("Hello").text)

Importing this package imports nothing heavy; MLX and the tokenizers come with the first `load_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lib_mlx.errors import LibMlxError

if TYPE_CHECKING:
    from lib_mlx.api import Generation, Model, Server, ground, load_model
    from lib_mlx.generation import (
        Constraint,
        Finished,
        Image,
        Message,
        PixelBounds,
        ReasoningDelta,
        SamplingParams,
        Sound,
        TextDelta,
        Tool,
        ToolCall,
        ToolCallDelta,
        Video,
    )

__version__ = "0.1.0"

__all__ = [
    "Constraint",
    "Finished",
    "Generation",
    "Image",
    "LibMlxError",
    "Message",
    "Model",
    "PixelBounds",
    "ReasoningDelta",
    "SamplingParams",
    "Server",
    "Sound",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Video",
    "__version__",
    "ground",
    "load_model",
]

_API = frozenset({"Generation", "Model", "Server", "ground", "load_model"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("lib_mlx.api" if name in _API else "lib_mlx.generation"), name)


def __dir__() -> list[str]:
    return __all__
