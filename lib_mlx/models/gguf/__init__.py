"""GGUF files as MLX model directories."""

from lib_mlx.models.gguf.convert import convert_gguf

__all__ = ["convert_gguf"]
