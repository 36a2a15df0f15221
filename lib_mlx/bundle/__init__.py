"""Folders that hold all an app ships: the library, a Python, the packages it needs, a model."""

from lib_mlx.bundle.bundle import Bundle, create
from lib_mlx.bundle.check import check

__all__ = ["Bundle", "check", "create"]
