"""The published data sets' layouts, made small here, and a real model on them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.errors import InvalidArgument, NotFound
from lib_mlx.grounding.screenspot import averages, evaluate, read_examples
from tests.grounding.conftest import FIXTURES, TRAINED, loaded

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from lib_mlx.grounding.result import Grounding

CASES = {case["name"]: case for case in json.loads((FIXTURES / "screenshots/cases.json").read_text())}
DOMAINS = {"mobile": ("phone",), "desktop": ("settings", "dialog"), "web": ("toolbar",)}


def ground(pixels: Image, instruction: str) -> Grounding:
    """The trained tiny model."""
    return loaded(TRAINED).ground(pixels, instruction)


def entry(name: str, *, corners: bool, kind: str) -> dict[str, Any]:
    left, top, right, bottom = CASES[name]["target_box"]
    return {
        "img_filename": f"{name}.png",
        "bbox": [left, top, right, bottom] if corners else [left, top, right - left, bottom - top],
        "instruction": CASES[name]["instruction"],
        **({"ui_type": kind, "group": "Dev", "img_size": [1, 1]} if corners else {"data_type": kind}),
    }


def copy_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in CASES:
        (folder / f"{name}.png").write_bytes((FIXTURES / f"screenshots/{name}.png").read_bytes())


@pytest.mark.parametrize(("images", "suffix"), [("screenspot_imgs", ""), ("screenspotv2_image", "_v2")])
def test_the_first_and_second(tmp_path: Path, images: str, suffix: str) -> None:
    """ScreenSpot and ScreenSpot-v2: a file for each domain, boxes of left, top, width and height."""
    copy_images(tmp_path / images)
    for domain, names in DOMAINS.items():
        entries = [entry(name, corners=False, kind=("text", "icon")[at % 2]) for at, name in enumerate(names)]
        (tmp_path / f"screenspot_{domain}{suffix}.json").write_text(json.dumps(entries))
    outcomes = list(evaluate(read_examples(tmp_path), ground))
    table = averages(outcomes)
    assert table.keys() == {
        *("mobile-text", "mobile", "desktop-text", "desktop-icon", "desktop"),
        *("web-text", "web", "all-text", "all-icon", "all"),
    }
    assert all(set(row.values()) == {1.0} for row in table.values())


def test_pro(tmp_path: Path) -> None:
    """ScreenSpot-Pro: annotations by application, boxes of corners; `all.json` is them again."""
    copy_images(tmp_path / "images")
    (tmp_path / "annotations").mkdir()
    entries = [entry("settings", corners=True, kind="text"), entry("dialog", corners=True, kind="icon")]
    entries[1]["bbox"] = [0, 0, 1, 1]
    (tmp_path / "annotations/vscode_macos.json").write_text(json.dumps(entries[:1]))
    (tmp_path / "annotations/pycharm_macos.json").write_text(json.dumps(entries[1:]))
    assert len(read_examples(tmp_path)) == 2
    (tmp_path / "annotations/all.json").write_text(json.dumps(entries))
    examples = read_examples(tmp_path)
    assert len(examples) == 2
    table = averages(list(evaluate(examples, ground, area=500 * 333)))
    assert table["Dev-text"]["hit@1"] == 1
    assert set(table["Dev-icon"].values()) == {0.0}
    assert table["all"]["hit@1"] == 0.5


def test_near_misses(tmp_path: Path) -> None:
    """A box beside the point that its patch touches overlaps; a lower candidate's hit counts among k."""
    copy_images(tmp_path / "images")
    (tmp_path / "annotations").mkdir()
    point = ground_case("settings").point
    x, y = point.x * CASES["settings"]["width"], point.y * CASES["settings"]["height"]
    beside = {**entry("settings", corners=True, kind="icon"), "bbox": [x + 5, y - 5, x + 40, y + 5]}
    second = ground_case("twins").pointers[0].points[1]
    x, y = second.x * CASES["twins"]["width"], second.y * CASES["twins"]["height"]
    other = {**entry("twins", corners=True, kind="text"), "bbox": [x - 5, y - 5, x + 5, y + 5]}
    (tmp_path / "annotations/all.json").write_text(json.dumps([beside, other]))
    one, two = (found.scores for found in evaluate(read_examples(tmp_path), ground))
    assert one == {"hit@1": False, "overlap@1": True, "hit@k": False, "overlap@k": True}
    assert two == {"hit@1": False, "overlap@1": False, "hit@k": True, "overlap@k": True}


def ground_case(name: str) -> Grounding:
    from PIL import Image

    with Image.open(FIXTURES / f"screenshots/{name}.png") as file:
        return ground(file.convert("RGB"), CASES[name]["instruction"])


def test_what_is_no_data_set(tmp_path: Path) -> None:
    """It is told what is missing or wrong."""
    with pytest.raises(NotFound, match="holds no ScreenSpot"):
        read_examples(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/a.json"
    file.write_text(json.dumps([entry("dialog", corners=True, kind="icon")]))
    with pytest.raises(NotFound, match=r"lacks .*dialog\.png"):
        read_examples(tmp_path)
    for content in ("[", '[{"bbox": [1, 2]}]', "[3]"):
        file.write_text(content)
        with pytest.raises(InvalidArgument, match="not as published"):
            read_examples(tmp_path)
