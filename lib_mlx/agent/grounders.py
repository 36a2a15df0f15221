"""Finding a target on a picture with a model behind a server: a GUI-Actor, or any that says coordinates."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from lib_mlx.agent.endpoint import data_url
from lib_mlx.agent.screen import Place
from lib_mlx.errors import TargetNotFound

if TYPE_CHECKING:
    from PIL.Image import Image

    from lib_mlx.agent.endpoint import ChatModel

Scale = Literal["auto", "unit", "thousand", "pixel"]
"""What a model's coordinates count: shares of the picture, thousandths of it, or its pixels."""
_ASK = (
    "Where on this screenshot is what the following means? Answer with its centre as [x, y], in thousandths of the "
    "picture's width and height, and nothing else.\n{}"
)
_MOST_TOKENS = 200
_NUMBER = r"(?:[xy]\s*=\s*)?(-?\d+(?:\.\d+)?)"
_BOX = re.compile(rf"[(\[]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[)\]]")
_PAIR = re.compile(rf"[(\[]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[)\]]")


class ChatGrounder:
    """Asks a model where something is.

    Args:
        model: what to ask. The answer of a GUI-Actor on lib_mlx's server says it by itself; others are asked for it.
        scale: what the coordinates of others count; "auto" takes thousandths, and shares if both are below one.
        prompt: how to ask others, with {} for the target; None: the target alone, as grounding models have it.
    """

    def __init__(self, model: ChatModel, *, scale: Scale = "auto", prompt: str | None = _ASK) -> None:
        self._model = model
        self._scale = scale
        self._prompt = prompt or "{}"

    def __call__(self, picture: Image, target: str) -> Place:
        """Return where `target` is.

        Raises:
            TargetNotFound: the answer has no coordinates, or they are not on the picture.
            LibMlxError: what the server refuses with.
        """
        content = [
            {"type": "image_url", "image_url": {"url": data_url(picture)}},
            {"type": "text", "text": self._prompt.replace("{}", target)},
        ]
        choice = self._model.choice([{"role": "user", "content": content}], temperature=0, max_tokens=_MOST_TOKENS)
        grounding = choice.get("grounding")
        if grounding:
            best = grounding["pointers"][0]["points"][0]
            return Place(best["x"], best["y"])
        said: Any = (choice.get("message") or {}).get("content") or ""
        return read_place(said, picture.width, picture.height, self._scale)


def read_place(said: str, width: int, height: int, scale: Scale = "auto") -> Place:
    """Return the first point, or the centre of the first box, that a model says: "(12, 34)", "[0.1, 0.2]" and the like.

    Args:
        said: its answer.
        width: of the picture, in pixels.
        height: likewise.
        scale: what the numbers count.

    Raises:
        TargetNotFound: there is none, or it is not on the picture.
    """
    box, pair = _BOX.search(said), _PAIR.search(said)
    if box:
        left, top, right, bottom = map(float, box.groups())
        x, y = (left + right) / 2, (top + bottom) / 2
    elif pair:
        x, y = map(float, pair.groups())
    else:
        raise TargetNotFound(f"The model gave no coordinates; it said {said[:200]!r}.", hint="Describe the target.")
    if scale == "auto":
        scale = "unit" if max(x, y) <= 1 and "." in said else "thousand"
    across, down = {"unit": (1, 1), "thousand": (1000, 1000), "pixel": (width, height)}[scale]
    place = Place(x / across, y / down)
    if not (0 <= place.x <= 1 and 0 <= place.y <= 1):
        raise TargetNotFound(
            f"The model pointed outside the picture; it said {said[:200]!r}.", hint="Set the scale of its coordinates."
        )
    return place
