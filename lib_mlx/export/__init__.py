"""Parts of a model in other formats."""
