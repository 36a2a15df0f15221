"""What GUI-Actor's models are told and say: detection, special tokens, prompts (github.com/microsoft/GUI-Actor)."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import CorruptModel, InvalidArgument, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lib_mlx.models.loader import LoadedTokenizer

HEAD_PREFIX = "multi_patch_pointer_head."
SYSTEM_PROMPTS = {
    "qwen2_vl": (
        "You are a GUI agent. You are given a task and a screenshot of the screen. "
        "You need to perform a series of pyautogui actions to complete the task."
    ),
    "qwen2_5_vl": (
        "You are a GUI agent. Given a screenshot of the current GUI and a human instruction, your task is to "
        "locate the screen element that corresponds to the instruction. You should output a PyAutoGUI action that "
        "performs a click on the correct position. To indicate the click location, we will use some special tokens, "
        "which is used to refer to a visual patch later. For example, you can output: "
        "pyautogui.click(<your_special_token_here>)."
    ),
}
"""By the backbone's `model_type`."""
POINTER = "<|pointer_start|><|pointer_pad|><|pointer_end|>"
_BEGUN = f"<|im_start|>assistant<|recipient|>os\npyautogui.click({POINTER})"
_SPEAKER = re.compile(r"<\|im_start\|>assistant<\|recipient\|>\w*\n?")
_MARKER = re.compile(r"<\|[a-z_]+\|>")


def is_pointer_model(config: Mapping[str, Any], tensors: Iterable[str] = ()) -> bool:
    """Tell whether a checkpoint is a GUI-Actor, by its config.json or the names of its tensors."""
    named = any(str(name).endswith("WithPointer") for name in config.get("architectures") or ())
    return named or any(name.startswith(HEAD_PREFIX) for name in tensors)


def tensor_files(path: Path) -> dict[str, Path]:
    """Return the tensors of a model directory by name, with the safetensors file that each is in; reads headers only.

    The checkpoint must have been inspected: its files are taken to be whole.
    """
    found = {}
    for file in sorted(path.glob("model*.safetensors")):
        with file.open("rb") as source:
            (length,) = struct.unpack("<Q", source.read(8))
            found.update(dict.fromkeys(json.loads(source.read(length)), file))
    found.pop("__metadata__", None)
    return found


@dataclass(frozen=True)
class Interface:
    """The tokens and prompts of one checkpoint."""

    system: str
    image: int
    pad: int
    end: int
    stops: frozenset[int]
    """Tokens that end an answer."""
    forbidden: tuple[str, ...]
    """Texts of special tokens, which an instruction may not have."""

    @classmethod
    def of(cls, config: Mapping[str, Any], tokenizer: LoadedTokenizer) -> Interface:
        """Read what config.json and the tokenizer say.

        Raises:
            UnsupportedModel: it is neither a Qwen2-VL nor a Qwen2.5-VL.
            CorruptModel: a special token is missing.
        """
        model_type = str(config.get("model_type"))
        if model_type not in SYSTEM_PROMPTS:
            raise UnsupportedModel(
                f"A GUI-Actor of the architecture {model_type!r} is not supported.",
                hint=f"Use one of {', '.join(SYSTEM_PROMPTS)}.",
            )
        backend = tokenizer.wrapper.backend_tokenizer
        names = ("image_token_id", "pointer_pad_token_id", "pointer_end_token_id", "pointer_start_token_id")
        ids = [config.get(name) for name in names]
        marker = backend.token_to_id("<|diff_marker|>")
        if marker is None or not all(isinstance(value, int) for value in ids):
            raise CorruptModel(
                f"The GUI-Actor checkpoint lacks <|diff_marker|> in its tokenizer or one of {', '.join(names)} in its "
                "config.json.",
                hint="Fetch the model again.",
            )
        image, pad, end, _ = (int(value or 0) for value in ids)
        stops = frozenset({marker, *tokenizer.wrapper.eos_token_ids, config.get("bos_token_id", marker)})
        added = tuple(token.content for token in backend.get_added_tokens_decoder().values())
        return cls(SYSTEM_PROMPTS[model_type], image, pad, end, stops, added)

    def prompt(self, instruction: str, *, free: bool, system: str | None = None) -> str:
        """Return the prompt's text, with one `<|image_pad|>` for the whole image.

        Args:
            instruction: what to point at.
            free: leave the answer to the model, instead of beginning it with one pointer.
            system: in place of the model's own system prompt.

        Raises:
            InvalidArgument: there is no instruction, or it has a special token's text.
        """
        if not instruction.strip():
            raise InvalidArgument("There is no instruction.", hint="Say what to point at.", param="messages")
        for text in (instruction, system or ""):
            for token in self.forbidden:
                if token in text:
                    raise InvalidArgument(
                        f"The text has {token!r}, which means something to this model.",
                        hint="Say it in other words.",
                        param="messages",
                    )
        return (
            f"<|im_start|>system\n{system or self.system}<|im_end|>\n"
            f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{instruction}<|im_end|>\n"
            f"{'' if free else _BEGUN}"
        )


def answer_text(generated: str | None, points: Iterable[tuple[int, int]]) -> str:
    """Return an answer with each pointer in it replaced by x and y in pixels, and nothing of the markup.

    Args:
        generated: the text, special tokens included; None for the answer that a prompt has begun.
        points: one for each pointer, in order.
    """
    text = _SPEAKER.sub("", _BEGUN if generated is None else generated)
    for x, y in points:
        text = text.replace(POINTER, f"{x}, {y}", 1)
    return _MARKER.sub("", text).strip()
