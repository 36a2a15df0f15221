"""The file of hosts of a model that is divided among them: that of `mlx.launch`, checked before anything is started."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lib_mlx.config import Config, parse_config
from lib_mlx.errors import InvalidArgument, InvalidJson

if TYPE_CHECKING:
    from pathlib import Path

Sharding = Literal["tensor", "pipeline"]
HERE = "127.0.0.1"
"""What MLX's launcher starts without ssh."""
_FIRST_PORT = 32323  # mlx.launch's
_TRIES = 100
_Address = Annotated[str, Field(pattern=r"^[^-\s:][^\s:]*$")]  # MLX writes a colon and the port behind it
_Name = Annotated[str, Field(pattern=r"^[^-\s]\S*$")]  # ssh would take "-…" for an option


class Host(Config):
    """One machine."""

    ssh: _Name
    """What ssh knows it by; 127.0.0.1 is this one."""
    ips: list[_Address] = Field(default_factory=list)
    """By which the others reach it."""
    rdma: list[str | list[str] | None] = Field(default_factory=list)
    """For JACCL: the device that leads to each of the hosts."""


class HostFile(Config):
    """The machines, the first of which is this one."""

    backend: Literal["", "ring", "mpi", "nccl", "jaccl", "jaccl-ring"] = ""
    """What they exchange numbers by; MLX's default if it is empty."""
    sharding: Sharding = "tensor"
    """What each host gets: a part of every layer, or whole layers."""
    envs: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+=")]] = Field(default_factory=list)
    """Environment variables of all ranks, as NAME=VALUE."""
    hosts: Annotated[list[Host], Field(min_length=2)]

    @property
    def address(self) -> str:
        """Where the others reach rank 0."""
        return (self.hosts[0].ips or [self.hosts[0].ssh])[0]

    def to_mlx(self) -> bytes:
        """Return what `mlx.launch` is given."""
        first, *others = (host.model_dump() for host in self.hosts)
        return json.dumps(
            {"backend": self.backend, "envs": self.envs, "hosts": [first | {"ssh": HERE}, *others]}
        ).encode()

    def first_port(self) -> int:
        """Return the first of as many ports in a row as the ranks need, which nobody on this machine has now."""
        ips = [ip for host in self.hosts for ip in host.ips] or [HERE]
        if set(ips) == {HERE}:
            return free_ports(HERE, len(ips))
        mine = [(at, ip) for at, ip in enumerate(ips) if _can_bind(ip, 0)]
        for first in range(_FIRST_PORT, (1 << 16) - len(ips), len(ips)):
            if all(_can_bind(ip, first + at) for at, ip in mine):
                return first
        raise InvalidArgument("All ports from 32323 on are taken.", hint="End the programs that have them.")


def read_hosts(file: Path) -> HostFile:
    """Return what `file` says.

    Raises:
        InvalidArgument: it cannot be read, or says what cannot be; `param` names the field.
    """
    try:
        content = json.loads(file.read_bytes())
        hosts = parse_config(HostFile, {"hosts": content} if isinstance(content, list) else _object(content))
        _check(hosts)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidArgument(
            f"{file} cannot be read: {reason}.",
            hint='Write mlx.launch\'s format, such as [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, …].',
            param="hosts",
        ) from None
    except (InvalidArgument, InvalidJson) as error:
        raise InvalidArgument(f"{file}: {error.message}", hint=error.hint, param=error.param) from None
    return hosts


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InvalidJson("It must hold a list of hosts, or an object.", hint='For example {"hosts": [{"ssh": …}, …]}.')
    return content


def _check(file: HostFile) -> None:
    """Refuse what MLX's launcher or a rank would fail at later, with less to say."""
    needs_ips = file.hosts if file.backend in {"", "ring"} else file.hosts[:1] if file.backend != "mpi" else []
    for at, host in enumerate(file.hosts):
        if host in needs_ips and not host.ips:
            raise _wrong(f"hosts.{at}.ips", "it is empty", "Name an address by which the other hosts reach this one.")
    if file.hosts[0].ips and not _can_bind(file.address, 0):
        raise _wrong(
            "hosts.0.ips.0", f"{file.address} is no address of this machine", "The first host is the one that serves."
        )
    if file.backend == "mpi" and shutil.which("mpirun") is None:
        raise _wrong("backend", "there is no mpirun on this machine", "Install Open MPI, or use another backend.")
    for at, host in enumerate(file.hosts) if file.backend.startswith("jaccl") else ():
        if len(host.rdma) != len(file.hosts) or host.rdma[at] is not None:
            raise _wrong(
                f"hosts.{at}.rdma",
                f"it must have {len(file.hosts)} devices, and null for the host itself",
                "mlx.distributed_config writes it.",
            )


def _wrong(key: str, why: str, hint: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid value for {key!r}: {why}.", hint=hint, param=key)


def free_ports(host: str, count: int) -> int:
    """Return the first of `count` ports in a row that nobody has now; raises InvalidArgument if there are none."""
    problem: Exception | None = None
    for _ in range(_TRIES):
        try:
            with contextlib.ExitStack() as bound:
                first = bound.enter_context(_bound(host, 0)).getsockname()[1]
                for port in range(first + 1, first + count):
                    bound.enter_context(_bound(host, port))
                return int(first)
        except (OSError, OverflowError) as error:
            problem = error
    raise InvalidArgument(
        f"The host {host!r} has no port to listen at: {problem}.",
        hint="Name an address of this machine.",
        param="host",
    )


def _bound(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def _can_bind(host: str, port: int) -> bool:
    try:
        _bound(host, port).close()
    except OSError:
        return False
    return True
