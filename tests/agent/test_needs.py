"""The extra `agent`."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lib_mlx.agent
from lib_mlx.agent.needs import need
from lib_mlx.errors import UnsupportedFeature


def test_a_missing_package() -> None:
    """The error names the extra."""
    with pytest.raises(UnsupportedFeature, match="nowhere_to_be_found") as caught:
        need("nowhere_to_be_found")
    assert "lib-mlx[agent]" in caught.value.hint


def test_importing_it_is_cheap() -> None:
    """Nothing heavy comes with the package; what it has comes when it is asked for."""
    code = "import sys, lib_mlx.agent; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in loaded} & {"PIL", "playwright", "pyautogui", "mlx", "numpy"}
    for name in lib_mlx.agent.__all__:
        assert getattr(lib_mlx.agent, name)
    with pytest.raises(AttributeError):
        lib_mlx.agent.nothing  # noqa: B018
