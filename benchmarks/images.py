"""What is saved where an image comes again, and where encoders wait for their first use.

    python -m benchmarks.images [--runs 5] [--depth 12] [--model DIRECTORY]

Time to the first token of a request with one image: seen for the first time; again in another conversation, where its
features are kept; in the next turn of the same one, where its place in the prompt is kept too. Without `--model` it is
a Qwen2-VL with random weights, whose encoder has `--depth` layers of width 640 and whose language model is tiny.
Memory is resident, each in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lib_mlx

FIXTURE = Path(__file__).parents[1] / "tests/fixtures/gui/models/tiny-qwen2-vl"
MEMORY = """
import sys
import lib_mlx, psutil
from benchmarks.images import picture, words
with lib_mlx.load_model(sys.argv[1], lazy_encoders=sys.argv[2] == "True") as model:
    text = model.generate("Hello", **words())
    print(psutil.Process().memory_info().rss)
    model.generate("What is this?", images=[picture(0)], **words())
    print(psutil.Process().memory_info().rss)
"""


def build(folder: Path, depth: int) -> Path:
    """Write a checkpoint with random weights whose encoder has `depth` layers."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_vlm.models import qwen2_vl

    from lib_mlx.models.upstream_vlm import normalised_config

    shutil.copytree(FIXTURE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"depth": depth, "embed_dim": 640, "num_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    full = qwen2_vl.ModelConfig.from_dict(normalised_config(config))
    full.text_config = qwen2_vl.TextConfig.from_dict(full.text_config)
    full.vision_config = qwen2_vl.VisionConfig.from_dict(config["vision_config"])
    parameters: Any = tree_flatten(qwen2_vl.Model(full).parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), dict(parameters))
    return folder


def picture(seed: int) -> bytes:
    """A picture that is like no other."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (448, 448, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def words() -> dict[str, Any]:
    """Options of a short answer."""
    return {"max_tokens": 1, "sampling": lib_mlx.SamplingParams(temperature=0)}


def first_tokens(model: lib_mlx.Model, seed: int) -> dict[str, float]:
    """Seconds to the first token of a new image, of the same in another conversation, and in the next turn."""
    shown = lib_mlx.Image(picture(seed))
    turn = lib_mlx.Message("user", "What is this?", parts=(shown, "What is this?"))
    other = lib_mlx.Message("user", "Where is this?", parts=("Where is this?", shown))
    told = [turn, lib_mlx.Message("assistant", "A picture."), lib_mlx.Message("user", "And what else?")]
    asked = {"new": [turn], "another conversation": [other], "next turn": told}
    return {name: model.generate(messages, **words()).timings.ttft for name, messages in asked.items()}


def resident(model: Path, *, lazy: bool) -> list[int]:
    """Bytes after a text, and after an image."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(model), str(lazy)], capture_output=True, text=True, check=True
    )
    return [int(line) for line in done.stdout.split()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or build(Path(folder) / "model", options.depth)
        with lib_mlx.load_model(path) as model:
            first_tokens(model, 0)
            runs = [first_tokens(model, seed) for seed in range(1, options.runs + 1)]
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for name, seconds in medians.items():
            print(f"first token, image {name:20} {seconds * 1000:7.1f} ms, ratio {medians['new'] / seconds:.1f}")
        lazy, eager = (resident(path, lazy=value) for value in (True, False))
        for name, (before, after) in (("at the first image", lazy), ("with the model", eager)):
            print(f"encoder loaded {name:18} {before / 1e6:.0f} MB resident, {after / 1e6:.0f} MB after an image")
        print(f"saved until an image comes: {(eager[0] - lazy[0]) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
