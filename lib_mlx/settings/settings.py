"""The schema of settings: the file's tables, and the environment's `LIB_MLX_TABLE__KEY`.

```toml
[server]                 # lib_mlx.config.ServerConfig
port = 8080
[engine]                 # lib_mlx.config.EngineConfig: for every model that does not say otherwise
kv_bits = 8
[models]                 # id -> path, or a table
tiny = "smollm2"
[models.big]
path = "mlx-community/Qwen3-8B-4bit"
preload = true
[profiles.fast]          # lib_mlx.config.Profile
max_tokens = 256
[service]
stop_timeout_s = 10
```
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lib_mlx.config import EngineConfig, KeepAlive, LoadConfig, LogLevel, Profile, ServedModel, ServerConfig


class ModelSettings(EngineConfig):
    """A model to serve; a text alone is its `path`."""

    path: Annotated[str, Field(min_length=1)]
    """A model directory, a `.gguf` file, or the name of a model in the store or the Hugging Face cache."""
    enabled: bool = True
    """False: it is not served."""
    preload: bool = False
    """Load it when the server starts, and not at its first use."""
    pinned: bool = False
    """Never unload it to make room or for idleness."""
    keep_alive: KeepAlive | None = None
    """Unload it after so long without a request; the server's `keep_alive` if not given."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face repository."""

    def served(self, name: str, engine: EngineConfig) -> ServedModel:
        """Return what a server is told of it; `engine` has the defaults of all models."""
        return ServedModel(model_path=self.path, model_id=name, **self._options(engine))

    def loaded(self, name: str | None, engine: EngineConfig) -> LoadConfig:
        """Return how it is loaded without a server."""
        options = self._options(engine)
        return LoadConfig(
            model_path=self.path,
            model_id=name,
            **{key: value for key, value in options.items() if key not in {"pinned", "keep_alive"}},
        )

    def _options(self, engine: EngineConfig) -> dict[str, Any]:
        own = self.model_dump(exclude_unset=True, exclude={"path", "enabled", "preload"})
        general = engine.model_dump(exclude_unset=True)
        if general.get("generation") and own.get("generation"):
            own["generation"] = {**general["generation"], **own["generation"]}
        return {**general, **own}


def _path_alone(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class ServiceSettings(BaseModel):
    """The service in the background (`lib-mlx start`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    start_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """`start` gives up after so long without a healthy server."""
    stop_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """`stop` kills after so long."""
    log_level: LogLevel = "info"
    """What the log is told; "debug" has a line per request."""
    log_bytes: Annotated[int, Field(ge=65536)] = 10 << 20
    """The log begins anew at this size; one old file is kept."""


class ServerSettings(ServerConfig):
    """How to serve. Models and profiles have tables of their own."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8642
    """0 picks a free port."""
    model_store: bool = True
    """Serve every model of the store and the Hugging Face cache, too."""


class Settings(BaseModel):
    """All settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    server: ServerSettings = ServerSettings()
    engine: EngineConfig = EngineConfig()
    """For every model that does not say otherwise."""
    models: dict[str, Annotated[ModelSettings, BeforeValidator(_path_alone)]] = {}
    """By the names that clients use."""
    profiles: dict[str, Profile] = {}
    """Named bounds of requests."""
    service: ServiceSettings = ServiceSettings()

    def server_config(self) -> ServerConfig:
        """Return what a server is started with."""
        models = [model.served(name, self.engine) for name, model in self.models.items() if model.enabled]
        own = self.server.model_dump(exclude={"models", "profiles"})
        return ServerConfig(**own, models=[*self.server.models, *models], profiles=self.profiles)

    def load_config(self, name: str) -> LoadConfig:
        """Return how to load the model that is called `name` here, or lies there."""
        return self.models.get(name, ModelSettings(path=name)).loaded(
            name if name in self.models else None, self.engine
        )

    def preloaded(self) -> list[str]:
        """Return the names of the models to be loaded at the start."""
        return [name for name, model in self.models.items() if model.enabled and model.preload]
