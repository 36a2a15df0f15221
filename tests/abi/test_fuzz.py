"""The fuzzer of the C functions: a short run of each driver; it sees defects and keeps to its sandbox."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.abi.conftest import ROOT, run
from tests.abi.fuzz.run import Driver, Sandbox, find_clang, fuzz
from tests.abi.fuzz.seeds import seeds

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

HERE = ROOT / "tests/abi/fuzz"
STUB = r"""
#include <stdlib.h>
#include <string.h>
#include "lib_mlx.h"
static char *answer(void) { return strdup(getenv("ANSWER")); }
char *lib_mlx_load_model(const char *c) { return c ? answer() : 0; }
char *lib_mlx_start_server(int64_t h, const char *c) { return h || !c ? answer() : answer(); }
char *lib_mlx_stop_server(int64_t h) { return h ? answer() : answer(); }
char *lib_mlx_server_status(int64_t h) { return h ? answer() : answer(); }
char *lib_mlx_unload_model(int64_t h) { return h ? answer() : answer(); }
char *lib_mlx_suspend(int64_t h) { return h ? answer() : answer(); }
char *lib_mlx_resume(int64_t h) { return h ? answer() : answer(); }
char *lib_mlx_shutdown(void) { return answer(); }
char *lib_mlx_version(void) { return answer(); }
void lib_mlx_free(void *p) { free(p); }
"""


@pytest.fixture(scope="module")
def stubbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fuzzer with a library that answers what ANSWER says, driven by the loop."""
    directory = tmp_path_factory.mktemp("stubbed")
    (directory / "stub.c").write_text(STUB)
    (directory / "seed").write_bytes(seeds()[0])
    sources = [HERE / "entry_points.c", HERE / "loop.c", directory / "stub.c"]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'include'}"]
    result = run(["cc", *flags, *sources, "-o", directory / "fuzzer"])
    assert result.returncode == 0, result.stderr
    return directory


@pytest.mark.parametrize("driver", ["libfuzzer", "loop"])
def test_no_input_breaks_the_library(driver: Driver, tmp_path: Path) -> None:
    """Hostile calls end no process and meet no `internal` error; every answer is ASCII JSON."""
    if driver == "libfuzzer" and not find_clang():
        pytest.skip("no clang with libFuzzer here")
    outcome = fuzz(Sandbox(tmp_path, driver), 8)
    assert outcome.crashes == [], outcome.crashes[0].with_suffix(".txt").read_text()
    assert outcome.executions > 20


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ('{"ok": true}', None),
        ('{"ok": false, "error": {"code": "invalid_json", "message": "", "hint": ""}}', None),
        ('{"ok": false, "error": {"code": "internal", "message": "", "hint": ""}}', "a defect of the library"),
        ('{"ok": true, "name": "é"}', "not ASCII"),
        ('{"ok": true', "not an answer"),
        ("", "not an answer"),
    ],
)
def test_defects_are_seen(stubbed: Path, answer: str, complaint: str | None) -> None:
    """An `internal` error or an answer of another shape ends the fuzzer, and the input that led there is kept."""
    result = run([stubbed / "fuzzer", 1, stubbed / "seed"], cwd=stubbed, env={**os.environ, "ANSWER": answer})
    assert (result.returncode == 0) == (complaint is None)
    assert (complaint or "") in result.stderr
    assert (stubbed / "last-input").exists()


def test_inputs_stay_in_the_sandbox(stubbed: Path) -> None:
    """No input can name a path outside the working directory or an address that is not the loopback."""
    calls = [
        'l0{"model_path": "/etc", "a": "\\/etc", "b": "\\u002Fetc", "c": "~root", "d": "\\u007e"}',
        's0{"host": "0.0.0.0", "\\u0068ost": "::"}',
        's0{"host": "127.0.0.1"}',
    ]
    (stubbed / "escape").write_text("".join(f"{call}\0" for call in calls))
    environment = {**os.environ, "ANSWER": '{"ok": true}', "SHOW": "1"}
    result = run([stubbed / "fuzzer", 1, stubbed / "escape"], cwd=stubbed, env=environment)
    shown = result.stderr.splitlines()[:6:2]
    assert shown[0] == 'l0{"model_path": "|etc", "a": "\\|etc", "b": "\\v002Fetc", "c": "|root", "d": "\\v007e"}'
    assert shown[1] == 's0{"Host": "0.0.0.0", "\\v0068ost": "::"}'
    assert shown[2] == calls[2]
