"""Prefill and decoding on the CPU: lib_mlx against mlx_lm as it is installed, alternating, each in a new process.

    python -m benchmarks.cpu_speed [--runs 3] [--model smollm2] [--repeat 12] [--tokens 32] [--streams 4]
                                   [--stored] [--weights float32]

mlx_lm computes in the type of the checkpoint's norms, and half precision is far slower than float32 on the CPU. So
the peer gets a copy whose half-precision tensors are float32; with --stored also the checkpoint as it is, once and with
a short prompt, because that takes minutes.

With --weights, lib_mlx runs with that `cpu_weights`, too.

CPU time is that of the whole process, memory what it holds at the end of the run. The limit of decoding is the memory
bandwidth, measured here by reading a large array, over the bytes of all weights as they are kept: each is read once per
token.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import psutil

from lib_mlx.config import CpuWeights

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
TEXT = "Tell me about the history of Rome. "


@dataclass
class Result:
    """Wall and CPU seconds of one run. Prefill ends with the first token, decoding makes the others."""

    prompt: int
    prefill_s: float
    prefill_cpu_s: float
    tokens: int
    decode_s: float
    decode_cpu_s: float
    load_s: float
    resident_bytes: int

    @property
    def prefill(self) -> float:
        """Tokens per second."""
        return self.prompt / self.prefill_s

    @property
    def decode(self) -> float:
        """Tokens per second."""
        return self.tokens / self.decode_s


class Clock:
    """Wall and CPU time of this process at four moments: before the load, begin, first token, end."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self.mark()

    def mark(self) -> None:
        """Note the next moment."""
        times = os.times()
        self.seen.append((time.perf_counter(), times.user + times.system))

    def result(self, prompt: int, tokens: int) -> Result:
        """Return the differences."""
        (load, _), (a, cpu_a), (b, cpu_b), (c, cpu_c) = self.seen
        memory = psutil.Process().memory_info().rss
        return Result(prompt, b - a, cpu_b - cpu_a, tokens, c - b, cpu_c - cpu_b, a - load, memory)


def lib_mlx(model: str, prompt: str, tokens: int, streams: int, weights: CpuWeights) -> Result:
    """Run lib_mlx's engine."""
    from lib_mlx.config import EngineConfig
    from lib_mlx.engine import engine
    from lib_mlx.engine.event_stream import ThreadEventStream
    from lib_mlx.generation import Failed, Finished, GenerationRequest, Message
    from lib_mlx.models.checkpoint import inspect

    clock = Clock()
    loaded = engine.load(inspect(Path(model)), EngineConfig(cpu_weights=weights))
    requests = [
        loaded.prepare(GenerationRequest(messages=(Message("user", prompt),), max_tokens=tokens))
        for _ in range(streams)
    ]
    outputs = [ThreadEventStream() for _ in requests]
    clock.mark()
    jobs = [loaded.submit(request, stream) for request, stream in zip(requests, outputs, strict=True)]
    outputs[-1].get()  # the last one to be prefilled
    clock.mark()
    before = sum(job.completion for job in jobs)
    for stream in outputs:
        while not isinstance(stream.get()[-1], (Finished, Failed)):
            pass
    clock.mark()
    made = sum(job.completion for job in jobs)
    return clock.result(streams * len(requests[0].prompt), made - before)


def mlx_lm(model: str, prompt: str, tokens: int, streams: int, _: CpuWeights) -> Result:
    """Run mlx_lm's own generation; it has one stream."""
    import mlx.core as mx
    from mlx_lm import load, stream_generate

    assert streams == 1
    clock, made = Clock(), 0
    network, tokenizer = load(model)[:2]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    clock.mark()
    for _response in stream_generate(network, tokenizer, ids, max_tokens=tokens):
        made += 1
        if made == 1:
            clock.mark()
    clock.mark()
    result = clock.result(len(ids), made - 1)
    mx.clear_streams()
    return result


def weight_bytes(model: str, weights: CpuWeights) -> int:
    """Return the size of a loaded model's weights."""
    from mlx.utils import tree_flatten

    from lib_mlx.engine import blas
    from lib_mlx.engine.worker import get_worker
    from lib_mlx.models.checkpoint import inspect
    from lib_mlx.models.loader import load_weights

    def load() -> int:
        blas.bind()
        network = load_weights(inspect(Path(model)), lambda _: None, lambda: False, weights).network
        return sum(array.nbytes for _, array in tree_flatten(network.parameters()))

    return get_worker().run(load)


def bandwidth() -> float:
    """Bytes per second that this process can read from memory."""
    import numpy as np

    array = np.ones(1 << 27, np.float32)
    best = float("inf")
    for _ in range(8):
        begun = time.perf_counter()
        np.dot(array, array)
        best = min(best, time.perf_counter() - begun)
    return array.nbytes / best


def widened_copy(model: Path, directory: Path) -> Path:
    """Copy a checkpoint, its half-precision tensors (norms, scales) as float32: mlx_lm then computes in float32."""
    import mlx.core as mx

    copy = shutil.copytree(model, directory / "float32")
    for file in copy.glob("model*.safetensors"):
        tensors = mx.load(str(file))
        half = (mx.float16, mx.bfloat16)
        wide = {name: x.astype(mx.float32) if x.dtype in half else x for name, x in tensors.items()}
        mx.eval(wide)
        mx.save_safetensors(str(file.with_suffix(".new.safetensors")), wide, {"format": "mlx"})
        file.with_suffix(".new.safetensors").replace(file)
    mx.clear_streams()
    return copy


def in_new_process(*arguments: str, threads: int | None = None) -> str:
    """Run this module's worker; return what it prints last."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if threads:
        environment["OPENBLAS_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "benchmarks.cpu_speed", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    return result.stdout.splitlines()[-1]


@dataclass(frozen=True)
class Contestant:
    """What runs, on what."""

    name: str
    worker: str
    model: Path
    streams: int = 1
    weights: CpuWeights = "auto"

    def run_worker(self, worker: str, *arguments: str) -> str:
        """Run a worker in a new process; return what it prints."""
        own = ["--model", str(self.model), "--streams", str(self.streams), "--weights", self.weights]
        return in_new_process("--worker", worker, *own, *arguments)

    def run(self, repeat: int, tokens: int) -> Result:
        """Run once in a new process, and print the result."""
        output = self.run_worker(self.worker, "--repeat", str(repeat), "--tokens", str(tokens))
        result = Result(**json.loads(output))
        print(
            f"{self.name:22} load {result.load_s:5.2f} s   prefill {result.prefill:6.1f} tokens/s "
            f"({1e3 * result.prefill_cpu_s / result.prompt:5.1f} ms CPU per token)   "
            f"decode {result.decode:6.2f} tokens/s "
            f"({1e3 * result.decode_cpu_s / result.tokens:5.1f} ms CPU per token)   "
            f"{result.resident_bytes / 1e6:.0f} MB",
            flush=True,
        )
        return result


def ratios(ours: list[Result], theirs: list[Result]) -> str:
    """Say how many times better ours are, by the medians."""
    measures: dict[str, Callable[[Result], float]] = {
        "prefill": lambda run: 1 / run.prefill,
        "decode": lambda run: 1 / run.decode,
        "prefill CPU": lambda run: run.prefill_cpu_s / run.prompt,
        "decode CPU": lambda run: run.decode_cpu_s / run.tokens,
        "memory": lambda run: run.resident_bytes,
    }
    parts = []
    for what, measure in measures.items():
        ratio = statistics.median(map(measure, theirs)) / statistics.median(map(measure, ours))
        parts.append(f"{what} {ratio:.1f}x")
    return ", ".join(parts)


def compare(options: argparse.Namespace, model: Path, directory: Path) -> None:
    """Measure everything and print it."""
    one, every = (float(in_new_process("--worker", "bandwidth", threads=n)) for n in (1, os.cpu_count()))
    print(f"memory bandwidth: {one / 1e9:.1f} GB/s with one thread, {every / 1e9:.1f} GB/s with all")
    us = Contestant("lib_mlx", "lib_mlx", model)
    several = Contestant(f"lib_mlx, {options.streams} streams", "lib_mlx", model, options.streams)
    peer = Contestant("mlx_lm, float32", "mlx_lm", widened_copy(model, directory))
    others = [replace(us, name=f"lib_mlx, {weights}", weights=weights) for weights in options.weights]
    results: dict[Contestant, list[Result]] = {contestant: [] for contestant in (us, peer, several, *others)}
    for _ in range(options.runs):
        for contestant, runs in results.items():
            runs.append(contestant.run(options.repeat, options.tokens))
    print(f"lib_mlx over mlx_lm in float32: {ratios(results[us], results[peer])}")
    for other in others:
        print(f"lib_mlx over {other.name}: {ratios(results[us], results[other])}")
    if options.stored:
        short = [contestant.run(0, 3) for contestant in (us, Contestant("mlx_lm, as stored", "mlx_lm", model))]
        print(f"lib_mlx over mlx_lm with the checkpoint as stored, 31 tokens: {ratios(short[:1], short[1:])}")
    size = int(us.run_worker("bytes"))
    read = size * statistics.median(run.decode for run in results[us])
    print(
        f"decode reads {size / 1e6:.0f} MB of weights per token: {read / 1e9:.1f} GB/s, "
        f"{100 * read / one:.0f} % of one thread's bandwidth, {100 * read / every:.0f} % of all threads'"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeat", type=int, default=12, help="sentences in the prompt")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, default=4, help="of the run with several")
    parser.add_argument("--stored", action="store_true", help="run mlx_lm on the checkpoint as stored, too: minutes")
    choices = get_args(CpuWeights)
    parser.add_argument("--weights", nargs="*", default=[], choices=choices, help="`cpu_weights` to compare with")
    parser.add_argument("--worker", choices=["lib_mlx", "mlx_lm", "bandwidth", "bytes"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "bandwidth":
        print(bandwidth())
    elif options.worker == "bytes":
        print(weight_bytes(options.model, *options.weights))
    elif options.worker:
        work = {"lib_mlx": lib_mlx, "mlx_lm": mlx_lm}[options.worker]
        prompt = TEXT * options.repeat or "Hi"
        print(json.dumps(asdict(work(options.model, prompt, options.tokens, options.streams, *options.weights))))
    else:
        from lib_mlx.models.store import resolve

        with tempfile.TemporaryDirectory() as directory:
            compare(options, resolve(options.model), Path(directory))


if __name__ == "__main__":
    main()
