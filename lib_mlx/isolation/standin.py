"""What answers at the address of a server whose process has died: every request with that, by any model's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_mlx.registry import ModelSpec, Registry
from lib_mlx.server.listener import Listener

if TYPE_CHECKING:
    from lib_mlx.config import LoadConfig, ServerConfig
    from lib_mlx.errors import EngineDied
    from lib_mlx.status import Handles, Status


def stand_in(status: Status, model: LoadConfig, server: ServerConfig, death: EngineDied, handles: Handles) -> Listener:
    """Listen where `status` says that the server did; raises as `Listener` does."""
    registry = Registry(any_name=True)
    name = status.server.model_id or status.model.model_id
    registry.add_failed(ModelSpec(name, model.model_path, model, pinned=True), death)
    config = server.model_copy(update={"port": status.server.port or 0})
    listener = Listener(registry, config, handles)
    listener.start()
    return listener
