"""For those who work on lib_mlx."""
