"""Services that the system starts: a systemd user unit on Linux, a launchd agent on macOS."""

from __future__ import annotations

import plistlib
import shlex
import sys
from pathlib import Path

import platformdirs

from lib_mlx.service.state import checked, log_path

_UNIT = """\
[Unit]
Description=lib_mlx: local language models ({name})
After=network.target

[Service]
ExecStart={command}
Restart=on-failure
RestartSec=2
TimeoutStopSec=30

[Install]
WantedBy=default.target
"""


def unit_path(name: str) -> Path:
    """Return where the system looks for the service `name`."""
    checked(name)
    if sys.platform == "darwin":  # not run here
        return Path.home() / "Library/LaunchAgents" / f"io.lib-mlx.{name}.plist"
    return platformdirs.user_config_path("systemd", appauthor=False) / "user" / f"lib-mlx-{name}.service"


def unit_text(name: str, arguments: list[str]) -> bytes:
    """Return the unit of a service that serves with `arguments` (those of `lib-mlx serve`)."""
    command = [sys.executable, "-m", "lib_mlx", "serve", "--service", name, *arguments]
    if sys.platform == "darwin":
        agent = {
            "Label": f"io.lib-mlx.{name}",
            "ProgramArguments": command,
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "StandardOutPath": str(log_path(name)),
            "StandardErrorPath": str(log_path(name)),
        }
        return plistlib.dumps(agent)
    quoted = " ".join(shlex.quote(part).replace("%", "%%") for part in command)
    return _UNIT.format(name=name, command=quoted).encode()


def install(name: str, arguments: list[str]) -> Path:
    """Write the unit; returns where. The system starts it when it is told to (see `start_command`)."""
    path = unit_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(unit_text(name, arguments))
    return path


def uninstall(name: str) -> bool:
    """Remove the unit; returns whether there was one."""
    path = unit_path(name)
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


def start_command(name: str) -> str:
    """Return what has the system start the service, now and at every login."""
    if sys.platform == "darwin":
        return f"launchctl bootstrap gui/$(id -u) {shlex.quote(str(unit_path(name)))}"
    return f"systemctl --user daemon-reload && systemctl --user enable --now {unit_path(name).name}"


def stop_command(name: str) -> str:
    """Return what has the system stop it, and start it no more."""
    if sys.platform == "darwin":
        return f"launchctl bootout gui/$(id -u)/io.lib-mlx.{name}"
    return f"systemctl --user disable --now {unit_path(name).name}"
