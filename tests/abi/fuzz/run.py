"""Fuzzes the C functions: `python -m tests.abi.fuzz.run --seconds N` prints executions and crashes.

The real library runs in a sandbox that the inputs cannot name anything outside of (entry_points.c): with clang's
libFuzzer, its native part built for AddressSanitizer and coverage; else as it is, with a loop of our own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, TypeAlias
from unittest import mock

import build_ffi
from tests.abi.fuzz.seeds import dictionary, seeds
from tests.checkpoints import build

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
Driver: TypeAlias = Literal["libfuzzer", "loop"]

CLANGS = ("clang", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14", "/opt/swift/usr/bin/clang")
# The loop runs the library as it is: gcc takes minutes to build the kernels with a sanitizer.
FLAGS: dict[Driver, tuple[str, ...]] = {
    "libfuzzer": ("-fsanitize=address,fuzzer-no-link", "-g", "-fno-omit-frame-pointer"),
    "loop": (),
}
OPTIONS = {
    # Python keeps what it has until the process ends; a huge allocation that fails is an answer.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_abort=1",
}
SLACK_S = 120.0
"""How much longer than it was told a driver may run: it starts Python, and ends with its last input."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run went."""

    executions: int
    crashes: list[Path]
    """The inputs that ended the process, and beside each of them what it said (`.txt`)."""


def find_clang() -> str | None:
    """Return a clang that links libFuzzer, None if there is none."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "empty.c"
        source.write_text("int LLVMFuzzerTestOneInput(const char *d, long s) { (void)d; (void)s; return 0; }\n")
        for clang in filter(shutil.which, CLANGS):
            command = [clang, "-fsanitize=fuzzer,address", str(source), "-o", f"{directory}/empty"]
            if not subprocess.run(command, capture_output=True, check=False).returncode:
                return clang
    return None


class Sandbox:
    """A directory with the instrumented library, the program, models to load and inputs to begin with."""

    def __init__(self, root: Path, driver: Driver) -> None:
        self.root, self.driver = root, driver
        self.work, self.found, self.corpus = root / "work", root / "found", root / "corpus"
        self.program = root / "entry_points"
        for directory in (self.found, self.corpus, root / "home"):
            directory.mkdir()
        for number, seed in enumerate(seeds()):
            (self.corpus / f"seed{number:02}").write_bytes(seed)
        (root / "words.dict").write_text(dictionary())
        self._build()

    def _build(self) -> None:
        compiler = find_clang() if self.driver == "libfuzzer" else "cc"
        if compiler is None:
            raise RuntimeError("no clang with libFuzzer here")
        (self.root / ".venv").symlink_to(ROOT / ".venv")
        ignored = shutil.ignore_patterns("__pycache__")
        package = shutil.copytree(ROOT / "lib_mlx", self.root / "lib_mlx", ignore=ignored)
        flags = FLAGS[self.driver]
        with mock.patch.dict(os.environ, CC=compiler):
            library, *_ = build_ffi.main(package, flags)
        sources = [HERE / "entry_points.c", *([HERE / "loop.c"] if self.driver == "loop" else [])]
        linked = [*(flag.replace("-no-link", "") for flag in flags), f"-L{library.parent}", "-llib_mlx"]
        warnings = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'include'}"]
        command = [compiler, *warnings, *map(str, sources), *linked, f"-Wl,-rpath,{library.parent}"]
        subprocess.run([*command, "-o", str(self.program)], check=True, capture_output=True)

    def refill(self) -> None:
        """Make the working directory anew: what an earlier run wrote there is gone."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        model = build(self.work / "model", "qwen")
        damaged = shutil.copytree(model, self.work / "damaged")
        (damaged / "model.safetensors").write_bytes(b"nothing")
        (self.work / "broken.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 64)
        (self.work / "models.toml").write_text('[[models]]\nmodel_path = "model"\nmodel_id = "other"\n')

    def environment(self) -> dict[str, str]:
        """No store, cache or home of the user's."""
        home = self.root / "home"
        places = ("HOME", "LIB_MLX_DATA_DIR", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "TMPDIR")
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {**kept, **OPTIONS, **dict.fromkeys(places, str(home))}

    def command(self, seconds: int) -> list[str]:
        """Run the program for a time."""
        if self.driver == "loop":
            return [str(self.program), str(seconds), *map(str, sorted(self.corpus.iterdir()))]
        options = ["-print_final_stats=1", "-max_len=20000", "-timeout=60", "-rss_limit_mb=6000", "-detect_leaks=0"]
        places = [f"-dict={self.root / 'words.dict'}", f"-artifact_prefix={self.found}/"]
        return [str(self.program), *options, *places, f"-max_total_time={seconds}", str(self.corpus)]


def fuzz(sandbox: Sandbox, seconds: float) -> Outcome:
    """Run for a time; a crash is kept, and the run goes on."""
    executions, crashes, end = 0, list[Path](), time.monotonic() + seconds
    while (left := int(end - time.monotonic())) > 0:
        sandbox.refill()
        result = subprocess.run(
            sandbox.command(left),
            cwd=sandbox.work,
            env=sandbox.environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=left + SLACK_S,
            check=False,
        )
        counted = re.search(r"(?:number_of_executed_units|executions): +(\d+)", result.stdout + result.stderr)
        executions += int(counted[1]) if counted else 0
        if result.returncode:
            crashes.append(_keep_crash(sandbox, len(crashes), result.stderr))
    return Outcome(executions, crashes)


def _keep_crash(sandbox: Sandbox, number: int, said: str) -> Path:
    new = [path for path in sandbox.found.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
    source = new[0] if new else sandbox.work / "last-input"
    kept = sandbox.found / f"{number:03}.input"
    if source.exists():
        shutil.move(source, kept)
    kept.with_suffix(".txt").write_text(said[-20000:])
    return kept


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--driver", choices=["libfuzzer", "loop"], help="libFuzzer if there is one, else the loop")
    parser.add_argument(
        "--keep", type=Path, help="a new directory to work in, which stays; else it goes if all is well"
    )
    arguments = parser.parse_args()
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="lib_mlx_fuzz_"))
    root.mkdir(parents=True, exist_ok=True)
    driver: Driver = arguments.driver or ("libfuzzer" if find_clang() else "loop")
    outcome = fuzz(Sandbox(root.resolve(), driver), arguments.seconds)
    print(f"{driver}: {outcome.executions} executions, {len(outcome.crashes)} crashes in {arguments.seconds} s")
    for crash in outcome.crashes:
        print(crash)
    if not outcome.crashes and not arguments.keep:
        shutil.rmtree(root)
    return 1 if outcome.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
