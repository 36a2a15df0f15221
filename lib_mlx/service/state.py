"""What is known of a service, in a file that it keeps itself and everybody may read who is the same user.

```
stopped ──► starting ──► running ──► stopping ──► stopped
               └──► failed   └──► crashed: its process is gone and has not said why
```
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import platformdirs
import psutil

from lib_mlx.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.errors import ErrorObject

Condition = Literal["stopped", "starting", "running", "stopping", "crashed", "failed"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALIVE = frozenset({"starting", "running", "stopping"})


@dataclass(frozen=True)
class ServiceState:
    """One service as it last said, or as it was found."""

    name: str
    status: Condition = "stopped"
    pid: int | None = None
    birth: float | None = None
    """When the process began, see `birth`: another process may have the same id later."""
    base_url: str | None = None
    uds: str | None = None
    api_key: str | None = None
    """For the commands that ask the server; the file is this user's alone."""
    arguments: list[str] = field(default_factory=list)
    """What it was started with, for a restart."""
    error: ErrorObject | None = None
    """Why it failed."""
    restarts: int = 0
    """How often the ranks of a model on several hosts were started again."""

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it: not the key."""
        return {key: value for key, value in asdict(self).items() if key not in {"api_key", "birth"}}


def state_dir() -> Path:
    """Return the folder of states and logs; it may not exist yet."""
    override = os.environ.get("LIB_MLX_STATE_DIR")
    return Path(override) if override else platformdirs.user_state_path("lib-mlx", appauthor=False)


def log_path(name: str) -> Path:
    """Return the file that the service `name` writes its log to."""
    return state_dir() / f"{checked(name)}.log"


def checked(name: str) -> str:
    """Return `name`; raises InvalidArgument if no service can be named so."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"{name!r} is no name for a service.", hint="Use letters, digits, '.', '_' and '-'.")
    return name


def write_state(state: ServiceState) -> None:
    """Keep `state`, atomically, for this user's eyes alone."""
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, staged = tempfile.mkstemp(dir=folder, suffix=".tmp")  # of mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(state), file)
        Path(staged).replace(_path(state.name))
    except BaseException:
        Path(staged).unlink(missing_ok=True)
        raise


def read_state(name: str) -> ServiceState:
    """Return what is known of the service `name`; one that was never started is stopped."""
    try:
        state = ServiceState(**json.loads(_path(checked(name)).read_text()))
    except (OSError, ValueError, TypeError):
        return ServiceState(name)
    if state.status in _ALIVE and not is_alive(state):
        return replace(state, status="crashed")
    return state


def known_services() -> Iterator[ServiceState]:
    """Yield every service that was ever started and not forgotten, by name."""
    with contextlib.suppress(OSError):
        for path in sorted(state_dir().glob("*.json")):
            if _NAME.fullmatch(path.stem):
                yield read_state(path.stem)


def birth(pid: int) -> float | None:
    """Return when a process began, None if there is none: on Linux by a clock that nobody sets."""
    try:
        if sys.platform != "linux":
            return psutil.Process(pid).create_time()
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])  # proc_pid_stat(5)
    except (OSError, psutil.Error):
        return None


def is_alive(state: ServiceState) -> bool:
    """Tell whether the process that wrote `state` lives: not another one that has its id now."""
    if state.pid is None:
        return False
    if state.birth is not None and birth(state.pid) != state.birth:
        return False
    try:
        return psutil.Process(state.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def forget(name: str) -> None:
    """Remove what is known of a service."""
    _path(checked(name)).unlink(missing_ok=True)


def _path(name: str) -> Path:
    return state_dir() / f"{name}.json"
