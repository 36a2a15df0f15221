"""Places in what models say."""

from __future__ import annotations

import pytest

from lib_mlx.agent import Place, read_place
from lib_mlx.errors import TargetNotFound


@pytest.mark.parametrize(
    ("said", "scale", "place"),
    [
        ("[500, 250]", "auto", (0.5, 0.25)),
        ("[0.5, 0.25]", "auto", (0.5, 0.25)),
        ("Thought: there.\nAction: click(start_box='(500,250)')", "thousand", (0.5, 0.25)),
        ("<|box_start|>(400,200),(600,300)<|box_end|>", "thousand", (0.4, 0.2)),
        ("[400, 200, 600, 300]", "thousand", (0.5, 0.25)),
        ("pyautogui.click(x=100, y=50)", "pixel", (0.5, 0.5)),
        ("pyautogui.click(100, 50)", "pixel", (0.5, 0.5)),
        ("(1, 1)", "auto", (0.001, 0.001)),
    ],
)
def test_places(said: str, scale: str, place: tuple[float, float]) -> None:
    """Points and boxes in the ways that models have, of a picture of 200 x 100 pixels."""
    assert read_place(said, 200, 100, scale) == Place(*place)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", ["", "I do not see it.", "[1, 2", "[-5, 3]", "[2000, 3]"])
def test_no_place(said: str) -> None:
    """An answer without one, or with one that is not on the picture, is an error."""
    with pytest.raises(TargetNotFound):
        read_place(said, 200, 100)
