from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.checkpoints import build

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def crafted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The crafted checkpoint with a context that an endless answer does not fill while a program starts."""
    return build(tmp_path_factory.mktemp("crafted") / "qwen", context_length=1 << 17)
