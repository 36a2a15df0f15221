"""The picture of what was found."""

from __future__ import annotations

from tests.grounding.conftest import TRAINED, cases, loaded, outcome, picture


def test_the_overlay() -> None:
    """Where the model looks it is red, elsewhere the picture is as it was; the original is untouched."""
    from lib_mlx.grounding.overlay import overlay

    known, case = loaded(TRAINED), cases(TRAINED)["dialog"]
    found = outcome(known.actor.ground(*known.case(case)))
    original = picture(case)
    drawn = overlay(original, found)
    assert drawn.size == original.size
    x, y = found.pixel(found.point)
    assert drawn.getpixel((x, y))[0] > original.getpixel((x, y))[0] + 50
    red, green, blue = (drawn.getpixel((440, 5))[at] - original.getpixel((440, 5))[at] for at in range(3))
    assert max(abs(red), abs(green), abs(blue)) < 5
    assert original.tobytes() == picture(case).tobytes()
