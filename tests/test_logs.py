"""The log files of hosts."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx2
import pytest

import lib_mlx
from lib_mlx.errors import InvalidArgument
from lib_mlx.logs import open_log

if TYPE_CHECKING:
    from pathlib import Path

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} \d+ (DEBUG|INFO|WARNING|ERROR) [\w.]+: .*")
SECRET = "hello, this is between us"


def test_what_happened_and_not_what_was_said(crafted: Path, tmp_path: Path) -> None:
    """Load, server, each request and unload have a line; prompts have none."""
    file = tmp_path / "lib_mlx.log"
    with lib_mlx.load_model(crafted, log_file=str(file), log_level="debug") as model, model.start_server() as server:
        body = {"messages": [{"role": "user", "content": SECRET}]}
        assert httpx2.post(f"{server.base_url}/v1/chat/completions", json=body).status_code == 200
        assert httpx2.get(f"{server.base_url}/nothing%0Ahere").status_code == 404
    text = file.read_text()
    assert all(LINE.fullmatch(line) for line in text.splitlines())
    for part in (
        "loading",
        "ready after",
        "serving at",
        "POST /v1/chat/completions 200",
        "404",
        "has stopped",
        "unloaded",
    ):
        assert part in text
    assert SECRET not in text
    before = file.stat().st_size
    with lib_mlx.load_model(crafted):
        pass
    assert file.stat().st_size == before


def test_levels(tmp_path: Path) -> None:
    """Each file has what it was opened for; nobody else hears more than before, and all is as it was afterwards."""
    logger = logging.getLogger("lib_mlx.test")
    before = list(logging.getLogger("lib_mlx").handlers)
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    root, ear = logging.getLogger(), Ear()
    root.addHandler(ear)
    level = root.level
    root.setLevel(logging.WARNING)
    try:
        low, high = open_log(str(tmp_path / "low"), "debug"), open_log(str(tmp_path / "high"), "error")
        for name in ("debug", "warning", "error"):
            getattr(logger, name)("%s\n2", name)
        low.close()
        low.close()
        logger.warning("again")
        high.close()
        logger.warning("at last")
        logger.debug("never")
    finally:
        root.removeHandler(ear)
        root.setLevel(level)
    assert heard == ["warning\n2", "error\n2", "again", "at last"]
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("low", "high")] == [6, 2]
    assert logging.getLogger("lib_mlx").propagate
    assert logging.getLogger("lib_mlx").handlers == before


def test_a_file_that_is_moved_away(tmp_path: Path) -> None:
    """Log rotation by others: writing goes on in a new file of the name."""
    file = tmp_path / "log"
    log = open_log(str(file), "info")
    logging.getLogger("lib_mlx").info("one")
    file.rename(tmp_path / "log.1")
    logging.getLogger("lib_mlx").info("two")
    log.close()
    assert "two" in file.read_text()
    assert "two" not in (tmp_path / "log.1").read_text()


def test_a_folder_that_is_gone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Records are lost until it is back; whoever wrote them does not notice."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = open_log(str(folder / "log"), "info")
    logger = logging.getLogger("lib_mlx")
    shutil.rmtree(folder)
    for _ in range(3):
        logger.info("lost")
    folder.mkdir()
    logger.info("back")
    log.close()
    assert (folder / "log").read_text().endswith("back\n")
    assert capfd.readouterr() == ("", "")


def test_a_full_disk(capfd: pytest.CaptureFixture[str]) -> None:
    """Records are lost, and nothing is printed or raised."""
    log = open_log("/dev/full", "info")
    logging.getLogger("lib_mlx").info("lost")
    log.close()
    assert capfd.readouterr() == ("", "")


def test_a_file_that_cannot_be_written(crafted: Path, tmp_path: Path) -> None:
    """It is an error of its own that names the key, and no handle is left."""
    with pytest.raises(InvalidArgument, match="nowhere") as caught:
        lib_mlx.load_model(crafted, log_file=str(tmp_path / "nowhere" / "log"))
    assert caught.value.param == "log_file"
    with pytest.raises(InvalidArgument, match="log_level"):
        lib_mlx.load_model(crafted, log_level="loud")


PRINTS = """
import logging, sys
import lib_mlx
from lib_mlx.logs import open_log
{setup}
logging.getLogger("lib_mlx.somewhere").error("an error")
open_log(sys.argv[1], "info").close()
logging.getLogger("lib_mlx.somewhere").error("another")
"""


@pytest.mark.parametrize(
    ("setup", "debug", "seen"),
    [
        ("", "", ""),
        ("", "1", "an error\nanother\n"),
        ("logging.basicConfig(format='%(message)s')", "", "an error\nanother\n"),
    ],
    ids=["without logging", "LIB_MLX_DEBUG", "with logging"],
)
def test_a_python_host_reads_what_it_asked_for(tmp_path: Path, setup: str, debug: str, seen: str) -> None:
    """Errors reach the stderr of a Python host only if it has set up logging, or LIB_MLX_DEBUG is set."""
    command = [sys.executable, "-c", PRINTS.format(setup=setup), str(tmp_path / "log")]
    environment = {**os.environ, "LIB_MLX_DEBUG": debug}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", seen)
