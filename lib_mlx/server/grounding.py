"""What a GUI-Actor points at, beside its text: the same in every dialect that has a place for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lib_mlx.generation import GroundingOptions
from lib_mlx.server.http import WireModel

if TYPE_CHECKING:
    from lib_mlx.generation import Grounded
    from lib_mlx.grounding.result import Pointer


class GroundingFields(WireModel):
    """The field `grounding` of a request."""

    mode: Literal["click", "free"] = "click"
    """"click" asks for one place; "free" leaves the action to the model."""
    attention: bool = False
    """Tell the maps of attention, too."""
    points: Annotated[int, Field(ge=1)] | None = None
    """The most candidates of each pointer; all if left out."""


def to_options(fields: GroundingFields | None) -> GroundingOptions | None:
    """Return the engine's options."""
    if fields is None:
        return None
    return GroundingOptions(free=fields.mode == "free", attention=fields.attention, points=fields.points)


def grounding_of(grounded: Grounded | None) -> dict[str, Any]:
    """Return `coordinates`, the pixel of each pointer's best candidate, and `grounding`, all that is known."""
    if grounded is None:
        return {}
    found, options = grounded.grounding, grounded.options

    def pointer(one: Pointer) -> dict[str, Any]:
        points = [
            {"x": point.x, "y": point.y, "pixel": found.pixel(point), "score": point.score}
            for point in one.points[: options.points]
        ]
        return {"points": points, **({"attention": _rows(one, found.columns)} if options.attention else {})}

    return {
        "coordinates": [found.pixel(one.points[0]) for one in found.pointers],
        "grounding": {
            "image": {"width": found.width, "height": found.height},
            "grid": {"columns": found.columns, "rows": found.rows},
            "pointers": [pointer(one) for one in found.pointers],
        },
    }


def _rows(pointer: Pointer, columns: int) -> list[list[float]]:
    scores = pointer.attention
    return [list(scores[at : at + columns]) for at in range(0, len(scores), columns)]
