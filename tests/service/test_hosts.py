"""Files of hosts: what is wrong with one is told by its field, before anything is started."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx.errors import InvalidArgument
from lib_mlx.service.hosts import free_ports, read_hosts

if TYPE_CHECKING:
    from pathlib import Path

HERE: dict[str, Any] = {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}
OTHER: dict[str, Any] = {"ssh": "mac2", "ips": ["10.1.2.3"]}


@pytest.mark.parametrize(
    ("content", "param", "said"),
    [
        ("{", "hosts", "cannot be read"),
        ("7", None, "must hold a list of hosts"),
        ([], "hosts", "at least 2 items"),
        ([HERE], "hosts", "at least 2 items"),
        ({"backend": "ring"}, "hosts", "required"),
        ({"hosts": "mac1,mac2"}, "hosts", "valid list"),
        ([HERE, "mac2"], "hosts.1", "valid dictionary"),
        ([HERE, {"ips": ["10.1.2.3"]}], "hosts.1.ssh", "required"),
        ([HERE, OTHER | {"ssh": 7}], "hosts.1.ssh", "valid string"),
        ([HERE, OTHER | {"ssh": "-oProxyCommand=x"}], "hosts.1.ssh", "pattern"),
        ([HERE, OTHER | {"ips": "10.1.2.3"}], "hosts.1.ips", "valid list"),
        ([HERE, OTHER | {"ips": ["fe80::1"]}], "hosts.1.ips.0", "pattern"),
        ([HERE, OTHER | {"ips": []}], "hosts.1.ips", "it is empty"),
        ([HERE, OTHER | {"ip": "10.1.2.3"}], "hosts.1.ip", "Did you mean 'ips'"),
        ({"backend": "rings", "hosts": [HERE, OTHER]}, "backend", "'ring'"),
        ({"sharding": "layers", "hosts": [HERE, OTHER]}, "sharding", "'pipeline'"),
        ({"envs": ["A B=1"], "hosts": [HERE, OTHER]}, "envs.0", "pattern"),
        ({"host": [HERE, OTHER], "hosts": [HERE, OTHER]}, "host", "Did you mean 'hosts'"),
        ([HERE | {"ips": ["192.0.2.1"]}, OTHER], "hosts.0.ips.0", "no address of this machine"),
        ({"backend": "jaccl", "hosts": [HERE, OTHER]}, "hosts.0.rdma", "2 devices"),
        ({"backend": "jaccl", "hosts": [HERE | {"rdma": ["en2", None]}, OTHER]}, "hosts.0.rdma", "null for the host"),
    ],
)
def test_what_is_wrong(tmp_path: Path, content: Any, param: str | None, said: str) -> None:
    """The error names the file and the field."""
    file = tmp_path / "hosts.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InvalidArgument) as caught:
        read_hosts(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.param == param


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(InvalidArgument, match=r"none\.json"):
        read_hosts(tmp_path / "none.json")


def test_mpi_needs_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mpirun the backend is refused."""
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps({"backend": "mpi", "hosts": [{"ssh": "a"}, {"ssh": "b"}]}))
    with pytest.raises(InvalidArgument, match="no mpirun") as caught:
        read_hosts(file)
    assert caught.value.param == "backend"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # MLX leaves the file open
def test_what_the_launcher_is_given(tmp_path: Path) -> None:
    """MLX's launcher gets the same hosts, of which the first is this machine, whatever ssh knows it by."""
    from mlx._distributed_utils.common import Hostfile

    file = tmp_path / "hosts.json"
    first = HERE | {"ssh": "mac1"}
    file.write_text(json.dumps({"backend": "ring", "envs": ["A=1"], "hosts": [first, OTHER]}))
    known = read_hosts(file)
    file.write_bytes(known.to_mlx())
    read = Hostfile.from_file(str(file))
    assert (read.backend, read.envs) == ("ring", ["A=1"])
    assert [(host.ssh_hostname, host.ips) for host in read.hosts] == [
        ("127.0.0.1", HERE["ips"]),
        ("mac2", OTHER["ips"]),
    ]
    assert known.address == "127.0.0.1"


def test_ports_of_no_address() -> None:
    """An address that is not this machine's has no free ports, and that is told."""
    assert free_ports("::1", 1) > 0
    with pytest.raises(InvalidArgument, match=r"'192\.0\.2\.1' has no port"):
        free_ports("192.0.2.1", 2)


def test_two_services_on_the_same_hosts(tmp_path: Path) -> None:
    """Where the first ports are taken the next ones are used, in step on all hosts."""
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps([HERE, OTHER]))
    hosts = read_hosts(file)
    first = hosts.first_port()
    with socket.create_server(("127.0.0.1", first)):
        assert hosts.first_port() == first + 2
