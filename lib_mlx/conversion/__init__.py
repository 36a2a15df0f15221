"""Making models smaller, or readable here: other types, other formats."""
