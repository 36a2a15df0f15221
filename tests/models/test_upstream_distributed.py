"""What lib_mlx needs of MLX's processes and mlx-lm's divided layers. A failure here means: they changed."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest
from mlx._distributed_utils import launch
from mlx_lm.models import llama, qwen2, qwen3
from mlx_lm.models.pipeline import PipelineMixin

from lib_mlx.service.hosts import free_ports

if TYPE_CHECKING:
    from pathlib import Path

_RANK = """
import json
import mlx.core as mx
mx.set_default_device(mx.cpu)
group = mx.distributed.init(strict=True)
mine = mx.array([group.rank() + 1], mx.int32)
shared = mx.distributed.all_sum(mine, group=group).item()
print(json.dumps([group.rank(), group.size(), shared]))
"""


class Layers(PipelineMixin):
    """Five layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = list(range(5))


@dataclass
class Group:
    """What a pipeline asks of a group."""

    at: int
    of: int

    def rank(self) -> int:
        return self.at

    def size(self) -> int:
        return self.of


def test_the_pinned_version() -> None:
    """The contracts below were read in this minor version."""
    assert version("mlx").startswith("0.32.")


def test_the_launcher() -> None:
    """It takes these options, starts 127.0.0.1 without ssh, sets these variables and tells of ranks so."""
    run = [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()", "--help"]
    said = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout
    for option in ("--hostfile", "--starting-port", "--nccl-port"):
        assert option in said
    source = inspect.getsource(launch)
    for text in ('== "127.0.0.1"', "export MLX_RANK=", '"MLX_HOSTFILE"', "Node with rank {rank} exited with code"):
        assert text in source
    assert "[WARN]" in inspect.getsource(launch.log_warning)


def test_no_group() -> None:
    """Without the launcher's variables there is an error, not a group of one."""
    with pytest.raises(RuntimeError, match="backend"):
        mx.distributed.init(strict=True)


def test_a_ring(tmp_path: Path) -> None:
    """The variables make a group, whose ranks sum what each has."""
    port = free_ports("127.0.0.1", 2)
    (tmp_path / "hosts").write_text(json.dumps([[f"127.0.0.1:{port}"], [f"127.0.0.1:{port + 1}"]]))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK],
            stdout=subprocess.PIPE,
            env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(tmp_path / "hosts")},
        )
        for rank in range(2)
    ]
    assert [json.loads(rank.communicate(timeout=60)[0]) for rank in ranks] == [[0, 2, 3], [1, 2, 3]]


def test_divided_layers() -> None:
    """`shard` takes the group; pipelines keep the layers of a rank, the first rank the last ones."""
    for module in (llama, qwen2, qwen3):
        assert [*inspect.signature(module.Model.shard).parameters] == ["self", "group"]
    assert [*inspect.signature(PipelineMixin.pipeline).parameters][:2] == ["self", "group"]
    assert issubclass(qwen2.Qwen2Model, PipelineMixin)
    layers = Layers()
    layers.pipeline(Group(1, 2))
    assert (layers.start_idx, layers.pipeline_layers) == (0, [0, 1])
    with pytest.raises(ValueError, match="must be positive"):
        Layers().pipeline(Group(0, 6))
