"""`lib-mlx ground`: where on a picture something is."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from lib_mlx.cli.service import Json  # noqa: TC001 - typer reads them

if TYPE_CHECKING:
    from lib_mlx.grounding.result import Grounding

Actor = Annotated[str, typer.Option("--model", "-m", help="A GUI-Actor: a directory or a name of `lib-mlx list`.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Show the model smaller pictures: quicker, less exact.")]


def ground(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A screenshot.")],
    instruction: Annotated[str, typer.Argument(help='What to point at: "Click the blue button".')],
    *,
    model: Actor,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Draw what was found into this file.")] = None,
    free: Annotated[bool, typer.Option("--free", help="Leave the action to the model.")] = False,
    verifier: Annotated[str | None, typer.Option(help="A vision model that ranks the candidates.")] = None,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Print the action that an instruction means on a picture, then its candidates: pixel and score."""
    import contextlib

    from lib_mlx.cli.generate import load

    with contextlib.ExitStack() as stack:
        actor = stack.enter_context(load(model))
        judge = stack.enter_context(load(verifier)) if verifier else None
        found = actor.ground(image, instruction, free=free, max_pixels=max_pixels, verifier=judge)
    if output is not None:
        _draw(image, found, output)
    if as_json:
        typer.echo(json.dumps(_told(found), indent=2))
        return
    typer.echo(found.text)
    for pointer in found.pointers:
        for point in pointer.points:
            judged = "" if point.verified is None else f"  verified {point.verified:.3f}"
            typer.secho(f"{found.pixel(point)}  score {point.score:.4f}{judged}", dim=True, err=True)


def _draw(image: Path, found: Grounding, output: Path) -> None:
    from PIL import Image

    from lib_mlx.errors import InvalidArgument
    from lib_mlx.grounding.overlay import overlay
    from lib_mlx.models.pictures import decode

    partial = output.with_name(f".{output.name}.partial")
    kind = Image.registered_extensions().get(output.suffix.lower())
    if kind is None:
        raise InvalidArgument(f"{output} is of no known format.", hint="Name a .png or .jpg file.", param="output")
    overlay(decode(image.read_bytes(), "image"), found).save(partial, kind)
    partial.replace(output)


def _told(found: Grounding) -> dict[str, object]:
    pointers = [
        [
            {"x": point.x, "y": point.y, "pixel": found.pixel(point), "score": point.score, "verified": point.verified}
            for point in pointer.points
        ]
        for pointer in found.pointers
    ]
    return {"text": found.text, "image": [found.width, found.height], "pointers": pointers}
