"""What a binding must cover: every configuration key of the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_mlx.config import GenerationDefaults, LoadConfig, Profile, ServedModel, ServerConfig

if TYPE_CHECKING:
    from pydantic import BaseModel

CONFIGS: dict[str, type[BaseModel]] = {
    "LoadConfig": LoadConfig,
    "ServedModelConfig": ServedModel,
    "Profile": Profile,
    "GenerationDefaults": GenerationDefaults,
    "ServerConfig": ServerConfig,
}
"""The configurations, under the names that bindings give them."""


def check_keys(config: str, keys: set[str]) -> None:
    """Demand that `keys` are all keys of a configuration, and no others."""
    known = set(CONFIGS[config].model_fields)
    assert known <= keys, f"{config}: not reachable: {known - keys}"
    assert keys <= known, f"{config}: unknown to the library: {keys - known}"
