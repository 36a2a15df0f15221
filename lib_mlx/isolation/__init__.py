"""Models that run in processes of their own (`"isolation": "process"`): what kills them does not kill the host."""

from lib_mlx.isolation.isolated_handle import IsolatedHandle

__all__ = ["IsolatedHandle"]
