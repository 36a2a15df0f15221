"""Generation on the one thread that owns MLX."""
