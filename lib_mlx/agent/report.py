"""What an agent did, as one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lib_mlx.agent.endpoint import png_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from lib_mlx.agent.loop import Run, Step
    from lib_mlx.agent.screen import Place

_RADIUS = 14
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>lib_mlx agent</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { margin: .3rem 0; overflow-wrap: anywhere; } img { max-width: 100%; border: 1px solid #ccc; }
.failed, .declined { color: #b00020; } .dry_run, .note { color: #666; }
</style></head><body>
"""


def write_report(path: str | os.PathLike[str], task: str, run: Run) -> Path:
    """Write a run to `path`, whole or not at all; returns the path.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(render(task, run))
        Path(partial).replace(target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return target


def render(task: str, run: Run) -> str:
    """Return the document."""
    ending = f"{run.ending.replace('_', ' ')}{f': {run.answer}' if run.answer else ''}"
    head = f"<h1>{html.escape(task)}</h1>\n<p>{html.escape(ending)}, after {len(run.steps)} steps</p>\n"
    return _HEAD + head + "".join(map(_section, run.steps)) + "</body></html>\n"


def annotated(picture: Image, places: tuple[Place, ...]) -> Image:
    """Return a copy of a picture with a red circle around each place."""
    from PIL import ImageDraw

    copy = picture.convert("RGB")
    draw = ImageDraw.Draw(copy)
    for place in places:
        x, y = place.pixel(copy.width, copy.height)
        draw.ellipse((x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS), outline="red", width=3)
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill="red")
    return copy


def _section(step: Step) -> str:
    picture = base64.b64encode(png_of(annotated(step.picture, step.places))).decode()
    said = html.escape(str(step.action) if step.action else "no action")
    thought = f"<p>{html.escape(step.action.thought)}</p>\n" if step.action and step.action.thought else ""
    where = ", ".join(str(place.pixel(*step.picture.size)) for place in step.places)
    return (
        f'<h2>{step.number}. {said}</h2>\n{thought}<p class="{step.outcome}">{html.escape(str(step))}</p>\n'
        f'<p class="note">{where + ", " if where else ""}{step.seconds:.2f} s</p>\n'
        f'<img alt="the screen before step {step.number}" src="data:image/png;base64,{picture}">\n'
    )
