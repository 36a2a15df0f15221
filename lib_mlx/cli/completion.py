"""What a shell is told when it completes a word: names of models."""

from __future__ import annotations


def model_names(incomplete: str) -> list[str]:
    """Return the models of this machine whose names begin so."""
    from lib_mlx.models import store

    return [model.name for model in store.list_models() if model.name.startswith(incomplete)]


def known_names(incomplete: str) -> list[str]:
    """Return the short names that can be pulled."""
    from lib_mlx.models.catalog import CATALOG

    return [name for name in CATALOG if name.startswith(incomplete)]
