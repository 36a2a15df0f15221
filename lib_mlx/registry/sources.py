"""Where a server's further models come from: its configuration, a file, the model store."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from lib_mlx.config import ServedModel, parse_config
from lib_mlx.errors import InvalidArgument, LibMlxError
from lib_mlx.models import store
from lib_mlx.registry.registry import Registry
from lib_mlx.registry.slot import FOREVER, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.config import ServerConfig


def new_registry(config: ServerConfig) -> Registry:
    """Return the registry that `config` describes, with nothing loaded.

    Raises:
        InvalidArgument: the models file cannot be read, or two models have the same name.
    """
    registry = Registry(
        keep_alive_s=FOREVER if config.keep_alive is None else config.keep_alive,
        limit_bytes=config.memory_limit_bytes,
        discover=_stored if config.model_store else tuple,
    )
    models = [*config.models, *(_read(Path(config.models_file).expanduser()) if config.models_file else ())]
    names = set()
    for model in models:
        spec = _spec(model)
        if spec.id in names:
            raise InvalidArgument(f"Two models are named {spec.id!r}.", hint="Give a model_id.", param="models")
        names.add(spec.id)
        registry.add(spec)
    return registry


def _spec(model: ServedModel) -> ModelSpec:
    return ModelSpec(
        id=model.model_id or Path(model.model_path).name,
        path=model.model_path,
        config=model,
        revision=model.revision,
        aliases=frozenset({model.model_path}),
        pinned=model.pinned,
        keep_alive_s=model.keep_alive,
    )


def _read(path: Path) -> list[ServedModel]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"{path} cannot be read: {error}.", hint="Write TOML with tables [[models]].", param="models_file"
        ) from None
    models = values.pop("models", [])
    if values or not isinstance(models, list):
        raise InvalidArgument(
            f"{path} holds more than tables [[models]].", hint="Remove the rest.", param="models_file"
        )
    try:
        return [parse_config(ServedModel, model) for model in models]
    except LibMlxError as error:
        raise InvalidArgument(f"{path}: {error.message}", hint=error.hint, param="models_file") from None


def _stored() -> Iterator[ModelSpec]:
    for model in store.list_models():
        yield ModelSpec(model.name, str(model.path))
