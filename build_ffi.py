"""placeholder: see helper."""
