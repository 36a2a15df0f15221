"""Units for systemd and launchd."""

from __future__ import annotations

import configparser
import plistlib
import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from lib_mlx.errors import InvalidArgument
from lib_mlx.service import units

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIB_MLX_STATE_DIR", str(tmp_path / "state"))


def test_a_systemd_unit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The unit runs this Python with the arguments, quoted, and restarts after a crash."""
    monkeypatch.setattr(sys, "platform", "linux")
    path = units.install("mine", ["/models/a b", "--port", "7", "50%"])
    assert path == tmp_path / "config/systemd/user/lib-mlx-mine.service"
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    unit.read(path)
    command = shlex.split(unit["Service"]["ExecStart"].replace("%%", "%"))
    assert command[:6] == [sys.executable, "-m", "lib_mlx", "serve", "--service", "mine"]
    assert command[6:] == ["/models/a b", "--port", "7", "50%"]
    assert unit["Service"]["Restart"] == "on-failure"
    assert "lib-mlx-mine.service" in units.start_command("mine")
    assert units.uninstall("mine")
    assert not units.uninstall("mine")


def test_a_launchd_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The agent has the same in launchd's terms (written on Linux; macOS has not run it)."""
    monkeypatch.setattr(sys, "platform", "darwin")
    path = units.install("mine", ["--port", "7"])
    assert path == tmp_path / "Library/LaunchAgents/io.lib-mlx.mine.plist"
    agent = plistlib.loads(path.read_bytes())
    assert agent["ProgramArguments"][-4:] == ["--service", "mine", "--port", "7"]
    assert agent["KeepAlive"] == {"SuccessfulExit": False}


def test_bad_names() -> None:
    """A name cannot leave the folder."""
    with pytest.raises(InvalidArgument):
        units.install("../x", [])
