"""ScreenSpot, ScreenSpot-v2 and ScreenSpot-Pro as they are published: read, and how well a model does on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_mlx.errors import InvalidArgument, NotFound, TargetNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from lib_mlx.grounding.result import Grounding

Ground = Callable[["Image", str], "Grounding"]
_IMAGES = ("screenspot_imgs", "screenspotv2_image", "images")
_DOMAINS = ("mobile", "desktop", "web")
METRICS = ("hit@1", "overlap@1", "hit@k", "overlap@k")


@dataclass(frozen=True)
class Example:
    """One instruction on one screenshot."""

    image: Path
    instruction: str
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the target, in pixels."""
    group: str
    """"mobile", "desktop" or "web"; of ScreenSpot-Pro its groups."""
    kind: str
    """"text" or "icon"."""


@dataclass(frozen=True)
class Outcome:
    """What a model made of an example."""

    example: Example
    points: tuple[tuple[float, float], ...]
    """Best first, 0..1; none if it pointed at nothing."""
    scores: dict[str, bool]
    """By metric."""


def read_examples(folder: Path) -> list[Example]:
    """Read a data set.

    `screenspot_{mobile,desktop,web}.json`, with `_v2` too, beside a folder of images has boxes of left, top, width and
    height; `annotations/*.json` beside `images` has boxes of left, top, right and bottom, as ScreenSpot-Pro does.

    Raises:
        NotFound: there is none in `folder`, or it lacks an image.
        InvalidArgument: a file of it is not as published.
    """
    images = next((folder / name for name in _IMAGES if (folder / name).is_dir()), None)
    domains = [(file, domain) for domain in _DOMAINS for file in sorted(folder.glob(f"screenspot_{domain}*.json"))]
    pro = sorted((folder / "annotations").glob("*.json"))
    if images is None or not (domains or pro):
        raise NotFound(
            f"{folder} holds no ScreenSpot: no folder {', '.join(_IMAGES)} beside screenspot_*.json or annotations.",
            hint="Give the folder that the data set was unpacked to.",
        )
    whole = [file for file in pro if file.name == "all.json"]  # the others are its parts
    found = [example for file, domain in domains for example in _read(file, images, domain)]
    return found or [example for file in whole or pro for example in _read(file, images, None)]


def _read(file: Path, images: Path, domain: str | None) -> Iterator[Example]:
    try:
        entries = json.loads(file.read_bytes())
        for entry in entries:
            yield _example(entry, images, domain)
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidArgument(
            f"{file} is not as published: {type(error).__name__}: {error}.", hint="Fetch the data set again."
        ) from error


def _example(entry: dict[str, Any], images: Path, domain: str | None) -> Example:
    left, top, third, fourth = map(float, entry["bbox"])
    box = (left, top, third, fourth) if domain is None else (left, top, left + third, top + fourth)
    path = images / entry["img_filename"]
    if not path.is_file():
        raise NotFound(f"The data set lacks {path}.", hint="Fetch it again.")
    kind = entry["data_type"] if domain else entry["ui_type"]
    return Example(path, str(entry["instruction"]), box, domain or str(entry["group"]), str(kind))


def evaluate(
    examples: Iterable[Example], ground: Ground, *, most: int = 3, area: int | None = None
) -> Iterator[Outcome]:
    """Ground each example and yield what came of it. Pointing at nothing is a miss.

    Args:
        examples: what to ask.
        ground: the model.
        most: the k of hit@k: candidates that count.
        area: scale each screenshot to about so many pixels first, as the published results on ScreenSpot-Pro do
            (5760000).
    """
    from PIL import Image

    for example in examples:
        with Image.open(example.image) as file:
            picture = file.convert("RGB")
        width, height = picture.size
        if area is not None:
            by = (area / (width * height)) ** 0.5
            picture = picture.resize((int(width * by), int(height * by)))
        try:
            found = ground(picture, example.instruction)
        except TargetNotFound:
            yield Outcome(example, (), dict.fromkeys(METRICS, False))
            continue
        points = tuple((point.x, point.y) for point in found.pointers[0].points[:most])
        left, top, right, bottom = example.box
        box = (left / width, top / height, right / width, bottom / height)
        yield Outcome(example, points, _scores(points, box, found.columns, found.rows))


def _scores(
    points: Sequence[tuple[float, float]], box: tuple[float, float, float, float], columns: int, rows: int
) -> dict[str, bool]:
    """Tell whether points lie in the box, and whether a patch around them touches it."""
    left, top, right, bottom = box
    hits = [left <= x <= right and top <= y <= bottom for x, y in points]
    across, down = 0.5 / columns, 0.5 / rows
    overlaps = [x + across > left and x - across < right and y + down > top and y - down < bottom for x, y in points]
    return dict(zip(METRICS, (hits[0], overlaps[0], any(hits), any(overlaps)), strict=True))


def averages(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Return the share of examples by metric: of each group and kind ("web-text"), each group, each kind, and all."""
    table: dict[str, dict[str, float]] = {}
    groups = dict.fromkeys(outcome.example.group for outcome in outcomes)
    kinds = dict.fromkeys(outcome.example.kind for outcome in outcomes)
    for group in (*groups, "all"):
        for kind in (*kinds, ""):
            chosen = [
                outcome
                for outcome in outcomes
                if group in {"all", outcome.example.group} and kind in {"", outcome.example.kind}
            ]
            if chosen:
                name = f"{group}-{kind}" if kind else group
                table[name] = {of: sum(one.scores[of] for one in chosen) / len(chosen) for of in METRICS}
    return table
