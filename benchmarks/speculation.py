"""What guessing brings: tokens/s with and without, in turn, on answers that repeat their prompt and on others.

    python -m benchmarks.speculation [--model smollm2] [--draft MODEL] [--runs 5]

Prints ratios; 1 is as fast as without. The answers are compared, too.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import lib_mlx
from lib_mlx.generation import SamplingParams

TEXT = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps by the river until the morning comes. "
    "In the morning it wakes up, looks at the river, and jumps over the lazy dog again."
)
PROMPTS = {
    "repeats its prompt": f"Repeat the following text exactly, word by word: {TEXT}",
    "says something new": "Explain in a few sentences why the sky is blue in the day and red in the evening.",
}


def measure(model: lib_mlx.Model, prompt: str) -> tuple[float, str]:
    """Return tokens/s of an answer, and the answer."""
    answer = model.generate(prompt, sampling=SamplingParams(temperature=0), max_tokens=96)
    return (answer.usage.completion - 1) / answer.timings.decode, answer.text


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft", help="A smaller model with the same tokens.")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    guessing: dict[str, dict[str, Any]] = {"without": {}, "prompt lookup": {"prompt_lookup": True, "draft_tokens": 8}}
    if options.draft:
        guessing["draft model"] = {"draft_model_path": options.draft}
    models = {name: lib_mlx.load_model(options.model, **config) for name, config in guessing.items()}
    try:
        for kind, prompt in PROMPTS.items():
            runs: dict[str, list[tuple[float, str]]] = {name: [] for name in models}
            for _ in range(options.runs):
                for name, model in models.items():
                    runs[name].append(measure(model, prompt))
            speeds = {name: statistics.median(speed for speed, _ in found) for name, found in runs.items()}
            same = len({text for found in runs.values() for _, text in found}) == 1
            print(f"an answer that {kind} ({'all the same' if same else 'NOT the same'}):")
            for name, speed in speeds.items():
                print(f"  {name:14} {speed:6.1f} tokens/s, ratio {speed / speeds['without']:.2f}")
    finally:
        for model in models.values():
            model.unload()


if __name__ == "__main__":
    main()
