"""Where settings come from, which of them wins, and how a wrong one is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lib_mlx.errors import InvalidArgument
from lib_mlx.settings import config_file, load_settings, user_config_file

if TYPE_CHECKING:
    from collections.abc import Mapping

TOML = """\
# mine
[server]
port = 1111          # a comment
keep_alive = "5m"

[engine]
context_length = 2048

[models]
tiny = "smollm2"

[models.big]
path = "/models/big"
preload = true
context_length = 4096

[models.off]
path = "/models/off"
enabled = false

[profiles.fast]
max_tokens = 7
"""
YAML = """\
server:
  port: 1111
  keep_alive: 5m
models:
  tiny: smollm2
"""
JSON = '{\n  "server": {\n    "port": 1111,\n    "keep_alive": "5m"\n  },\n  "models": {"tiny": "smollm2"}\n}'


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration but the test's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIB_MLX_CONFIG", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def write(name: str, text: str) -> Path:
    """Write a file of this directory."""
    path = Path(name)
    path.write_text(text)
    return path


def test_defaults() -> None:
    """Without anything there are the defaults."""
    settings = load_settings(environment={})
    assert (settings.server.port, settings.server.host, settings.server.model_store) == (8642, "127.0.0.1", True)
    assert settings.server_config().models == []


@pytest.mark.parametrize(("name", "text"), [("lib-mlx.toml", TOML), ("lib-mlx.yaml", YAML), ("lib-mlx.json", JSON)])
def test_a_file_of_each_kind(name: str, text: str) -> None:
    """TOML, YAML and JSON say the same."""
    write(name, text)
    settings = load_settings(environment={})
    assert (settings.server.port, settings.server.keep_alive) == (1111, 300.0)
    assert settings.models["tiny"].path == "smollm2"


def test_what_a_server_is_told() -> None:
    """Models get the engine's settings where they have none of their own; those that are off are not served."""
    write("lib-mlx.toml", TOML)
    settings = load_settings(environment={})
    config = settings.server_config()
    told = {model.model_id: (model.model_path, model.context_length) for model in config.models}
    assert told == {"tiny": ("smollm2", 2048), "big": ("/models/big", 4096)}
    assert settings.preloaded() == ["big"]
    assert config.profiles["fast"].max_tokens == 7


def test_generation_defaults() -> None:
    """A model's own go before those of all models, one by one."""
    write(
        "lib-mlx.toml",
        "[engine.generation]\ntemperature = 0\nmax_tokens = 9\n[models.a]\npath = 'x'\ngeneration.max_tokens = 5\n",
    )
    (model,) = load_settings(environment={}).server_config().models
    assert model.generation is not None
    assert (model.generation.temperature, model.generation.max_tokens, model.generation.top_p) == (0.0, 5, None)
    with pytest.raises(InvalidArgument, match="temperatur"):
        load_settings(environment={"LIB_MLX_ENGINE__GENERATION": '{"temperatur": 1}'})


def test_a_mapping_of_models() -> None:
    """A file that maps names to paths and holds nothing else is one of models."""
    file = write("models.json", '{"a": "/models/a", "b": "org/b"}')
    assert {name: model.path for name, model in load_settings(file=file, environment={}).models.items()} == {
        "a": "/models/a",
        "b": "org/b",
    }


def test_who_wins() -> None:
    """The command line over the environment over the file over the defaults, key by key."""
    write("lib-mlx.toml", "[server]\nport = 1\nqueue_limit = 1\nhost = '127.0.0.2'\n")
    environment = {"LIB_MLX_SERVER__PORT": "2", "LIB_MLX_SERVER__QUEUE_LIMIT": "2", "LIB_MLX_HOME": "/x"}
    server = load_settings({"server": {"port": 3}}, environment=environment).server
    assert (server.port, server.queue_limit, server.host, server.model_store) == (3, 2, "127.0.0.2", True)


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("LIB_MLX_SERVER__ALLOWED_HOSTS", '["a", "b"]', "allowed_hosts", ["a", "b"]),
        ("LIB_MLX_SERVER__MODEL_STORE", "false", "model_store", False),
        ("LIB_MLX_SERVER__API_KEY", "12345", "api_key", "12345"),
        ("LIB_MLX_SERVER__KEEP_ALIVE", "90s", "keep_alive", 90.0),
    ],
)
def test_variables(name: str, text: str, key: str, value: object) -> None:
    """Lists are JSON; what else a text stands for says the schema."""
    assert getattr(load_settings(environment={name: text}).server, key) == value


def test_which_file_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one named, LIB_MLX_CONFIG's, one of this directory, the user's."""
    assert config_file() is None
    user = user_config_file()
    user.parent.mkdir(parents=True)
    user.write_text("[server]\nport = 4\n")
    assert config_file() == user
    here = write("lib-mlx.toml", "[server]\nport = 3\n")
    assert config_file() == here
    named = tmp_path / "other.toml"
    named.write_text("[server]\nport = 2\n")
    monkeypatch.setenv("LIB_MLX_CONFIG", str(named))
    assert config_file() == named
    assert config_file(here) == here
    with pytest.raises(InvalidArgument, match="nowhere"):
        config_file(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("name", "text", "complaint", "hint"),
    [
        ("lib-mlx.toml", "[server]\nport = 1\nprot = 2\n", "lib-mlx.toml, line 3: unknown key 'server.prot'", "'port'"),
        ("lib-mlx.toml", "[sever]\nport = 1\n", "lib-mlx.toml, line 1: unknown key 'sever'", "'server'"),
        ("lib-mlx.toml", 'server.port = "x"\n', "lib-mlx.toml, line 1: invalid value for 'server.port'", ""),
        ("lib-mlx.toml", TOML.replace("preload", "prelaod"), "line 14: unknown key 'models.big.prelaod'", "'preload'"),
        ("lib-mlx.toml", "[models.x]\npreload = true\n", "line 1: 'models.x.path' is required", ""),
        ("lib-mlx.toml", '[models."a.b"]\npath = 7\n', "line 2: invalid value for 'models.a.b.path'", ""),
        ("lib-mlx.toml", "[server\n", "line 1", ""),
        (
            "lib-mlx.yaml",
            "server:\n  host: a\n  prot: 1\n",
            "lib-mlx.yaml, line 3: unknown key 'server.prot'",
            "'port'",
        ),
        ("lib-mlx.yaml", "server: [\n", "line 2", ""),
        ("lib-mlx.yaml", "- 1\n", "must hold tables", ""),
        ("lib-mlx.json", JSON.replace("1111", "-1"), "lib-mlx.json, line 3: invalid value for 'server.port'", ""),
        ("lib-mlx.json", '{"server": }', "line 1", ""),
    ],
)
def test_what_is_wrong_in_a_file(name: str, text: str, complaint: str, hint: str) -> None:
    """The error names file and line, the key, and the nearest one that there is."""
    write(name, text)
    with pytest.raises(InvalidArgument) as caught:
        load_settings(environment={})
    assert complaint in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"LIB_MLX_SERVER__PROT": "1"}, "LIB_MLX_SERVER__PROT: unknown key 'server.prot'"),
        ({"LIB_MLX_SEVER__PORT": "1"}, "LIB_MLX_SEVER__PORT: there is no table 'sever'"),
        ({"LIB_MLX_SERVER__PORT": "x"}, "LIB_MLX_SERVER__PORT: invalid value for 'server.port'"),
    ],
)
def test_what_is_wrong_in_the_environment(environment: Mapping[str, str], complaint: str) -> None:
    """The error names the variable, even if the file is right."""
    write("lib-mlx.toml", TOML)
    with pytest.raises(InvalidArgument) as caught:
        load_settings(environment=environment)
    assert complaint in caught.value.message


def test_what_is_wrong_on_the_command_line() -> None:
    """The error names the option."""
    with pytest.raises(InvalidArgument, match="--port: invalid value"):
        load_settings({"server": {"port": 70000}}, environment={})


def test_paths_beside_the_file(tmp_path: Path) -> None:
    """What lies beside the file is found from any directory; names, and an adapter's among them, stay as they are."""
    for folder in ("one", "two", "big"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "lib-mlx.toml"
    file.write_text(
        '[engine]\nadapter_path = "one"\nadapters = { one = "one", b = "two" }\nprefix_cache_path = "none"\n'
        '[models]\nsmall = "smollm2"\nmid = "./big"\n[models.big]\npath = "big"\nadapter_path = "two"\n'
    )
    settings = load_settings(file=file, environment={})
    assert settings.engine.adapter_path == "one"
    assert settings.engine.adapters == {"one": str(tmp_path / "one"), "b": str(tmp_path / "two")}
    assert settings.engine.prefix_cache_path == "none"
    assert {name: model.path for name, model in settings.models.items()} == {
        "small": "smollm2",
        "mid": str(tmp_path / "big"),
        "big": str(tmp_path / "big"),
    }
    assert settings.models["big"].adapter_path == str(tmp_path / "two")


@pytest.mark.parametrize("name", ["x" * 5000, "a\\u0000b"])
def test_names_that_can_be_no_path(tmp_path: Path, name: str) -> None:
    """A model's name may be one that no file system takes; whoever loads it is told."""
    (tmp_path / "lib-mlx.toml").write_text(f'[models]\nbig = "{name}"\n')
    (model,) = load_settings(file=tmp_path / "lib-mlx.toml").server_config().models
    assert model.model_path == name.replace("\\u0000", "\0")
