"""Which models a server has, and when each is in memory."""

from lib_mlx.registry.lease import Lease
from lib_mlx.registry.registry import Registry
from lib_mlx.registry.slot import FOREVER, ModelEntry, ModelSpec

__all__ = ["FOREVER", "Lease", "ModelEntry", "ModelSpec", "Registry"]
