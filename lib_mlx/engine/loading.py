"""From a model's name to an engine that can generate, for the runtime and for the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_mlx.engine.imports import import_on_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lib_mlx.config import EngineConfig
    from lib_mlx.engine.engine import EngineModel


def open_model(
    name: str,
    config: EngineConfig,
    *,
    revision: str | None = None,
    progress: Callable[[float, str], None] = lambda _fraction, _stage: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> EngineModel:
    """Find and load the model `name` (see `models.store.resolve`). Blocks; not for the engine thread.

    Args:
        name: a directory, a `.gguf` file, or a name of the store or the Hugging Face cache.
        config: how to run it.
        revision: of a Hugging Face repository.
        progress: told the fraction done (0 to 1) and the stage, from several threads.
        cancelled: asked every 64 MiB.

    Raises:
        LibMlxError: it is not there, does not fit, is damaged or unsupported, or the load was cancelled.
    """
    from lib_mlx.models import checkpoint

    path, done = _resolve(name, revision, progress, cancelled)
    inspected = checkpoint.inspect(path, trust_remote_code=config.trust_remote_code)
    progress(done, "importing")
    import_on_worker("lib_mlx.engine.engine")
    from lib_mlx.engine import engine

    return engine.load(
        inspected,
        config,
        progress=lambda fraction, stage: progress(done + (1 - done) * fraction, stage),
        cancelled=cancelled,
    )


def _resolve(
    name: str, revision: str | None, progress: Callable[[float, str], None], cancelled: Callable[[], bool]
) -> tuple[Path, float]:
    """Return the model's directory and the share of the load that finding it took."""
    from lib_mlx.models import store

    progress(0.0, "resolving")
    path = store.resolve(
        name,
        revision,
        progress=lambda done, total: progress(0.5 * done / (total or 1), "converting"),
        cancelled=cancelled,
    )
    return path, 0.5 if name.lower().endswith(".gguf") else 0.0
