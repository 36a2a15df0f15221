"""The HTTP server: dialects over one engine. Never imports MLX."""
