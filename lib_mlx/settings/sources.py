"""Where settings come from, and where a wrong one stands."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import platformdirs
import pydantic

from lib_mlx.errors import InvalidArgument
from lib_mlx.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMES = ("lib-mlx.toml", "lib-mlx.yaml", "lib-mlx.yml", "lib-mlx.json")
PREFIX = "LIB_MLX_"
_PATHS = ("path", "adapter_path", "draft_model_path", "prefix_cache_path")
FILE_VARIABLE = "LIB_MLX_CONFIG"


def user_config_file() -> Path:
    """Return where the user's configuration is looked for; it may not exist."""
    return platformdirs.user_config_path("lib-mlx", appauthor=False) / "lib-mlx.toml"


def config_file(named: Path | None = None) -> Path | None:
    """Return the file that counts: the one named, LIB_MLX_CONFIG's, one of this directory, the user's; or None.

    Raises:
        InvalidArgument: the one that was named is not there.
    """
    given = named or (Path(os.environ[FILE_VARIABLE]) if os.environ.get(FILE_VARIABLE) else None)
    if given is not None:
        if not given.is_file():
            raise InvalidArgument(f"There is no configuration file {given}.", hint="Name one that exists.")
        return given
    folder = user_config_file().parent
    places = [*map(Path, NAMES), *(folder / name for name in NAMES)]
    return next((place for place in places if place.is_file()), None)


def load_settings(
    overrides: Mapping[str, Any] | None = None, *, file: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Return the settings in force.

    Args:
        overrides: the command line's, in the file's shape; they win.
        file: a configuration file instead of the one that is found.
        environment: where `LIB_MLX_TABLE__KEY` are looked for; they win over the file.

    Raises:
        InvalidArgument: a key is unknown or has a wrong value; the message names file and line, or the variable.
    """
    found = config_file(file)
    text = _text(found) if found else ""
    from_file = _anchored(_parse(found, text), found.absolute().parent) if found else {}
    _check(from_file, _InFile(found, text))
    from_environment = _variables(environment)
    _check(_merged(from_file, from_environment), _InEnvironment(from_environment))
    values = _merged(_merged(from_file, from_environment), overrides or {})
    return _check(values, _InCommand())


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


# Files


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}.") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    """Return a file's values; a mapping of names to paths alone is a file of models."""
    try:
        if path.suffix == ".toml":
            values: Any = tomllib.loads(text)
        elif path.suffix == ".json":
            values = json.loads(text)
        else:
            import yaml

            values = yaml.safe_load(text) or {}
    except ValueError as error:  # TOMLDecodeError and JSONDecodeError are such; both name the line
        raise InvalidArgument(f"{path}: {error}.", hint="Correct the file, or move it away.") from None
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise InvalidArgument(f"{path}: {' '.join(str(error).split())}.", hint="Correct the file.") from None
        raise
    if not isinstance(values, dict):
        raise InvalidArgument(f"{path} must hold tables, such as [server].")
    if values and all(isinstance(value, str) for value in values.values()):
        return {"models": values}
    return values


def _anchored(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a file's values with the whole path of what lies beside it: a service runs in another directory."""
    engine, models = values.get("engine"), values.get("models")
    return {
        **values,
        **({"engine": _paths_beside(engine, folder)} if engine else {}),
        **(
            {"models": {key: _paths_beside(model, folder) for key, model in models.items()}}
            if _is_table(models)
            else {}
        ),
    }


def _paths_beside(value: Any, folder: Path) -> Any:
    """Return a path, or a table with some, likewise."""
    if not _is_table(value):
        beside = str(folder / value) if isinstance(value, str) and value else ""
        return beside if os.path.exists(beside) else value  # noqa: PTH110 - Path's raises for what can be no path
    adapters = value["adapters"] if _is_table(value.get("adapters")) else {}
    own = {key: _paths_beside(value[key], folder) for key in _PATHS if str(value.get(key, "")) not in {"", *adapters}}
    named = {key: _paths_beside(path, folder) for key, path in adapters.items()}
    return {**value, **own, **({"adapters": named} if named else {})}


def _is_table(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _line_of(path: Path, text: str, keys: Sequence[str]) -> int | None:
    """Return the line on which the value of `keys` stands, or its table begins."""
    return _toml_line(text, keys) if path.suffix == ".toml" else _yaml_line(text, keys)


_TABLE = re.compile(r"\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}")
_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[\w.\- ])+?)\s*=""")
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([\w-]+)""")


def _toml_line(text: str, keys: Sequence[str]) -> int | None:
    table: list[str] = []
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.fullmatch(line.partition("#")[0].rstrip()):
            table = _parts(header[1])
            path = table
        elif key := _KEY.match(line):
            path = [*table, *_parts(key[1])]
        else:
            continue
        length = len(path)
        if path == list(keys[:length]) and (best is None or length > best[0]):
            best = (length, number)
    return best[1] if best else None


def _parts(dotted: str) -> list[str]:
    return ["".join(groups) for groups in _PART.findall(dotted)]


def _yaml_line(text: str, keys: Sequence[str]) -> int | None:
    """JSON, too, is YAML to its parser."""
    import yaml

    node, line = yaml.compose(text), None
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((name, value) for name, value in node.value if name.value == key), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


# The environment


def _variables(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the tables that variables `LIB_MLX_TABLE__KEY` make; a list or an object is JSON.

    Raises:
        InvalidArgument: there is no such table.
    """
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        table, *keys = name[len(PREFIX) :].lower().split("__")
        if table not in Settings.model_fields:
            near = difflib.get_close_matches(table, list(Settings.model_fields), n=1)
            hint = (
                f"Did you mean {PREFIX}{near[0].upper()}__…?"
                if near
                else f"Tables: {', '.join(Settings.model_fields)}."
            )
            raise InvalidArgument(f"{name}: there is no table {table!r}.", hint=hint)
        at = values.setdefault(table, {})
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = _value(text)
    return values


def _value(text: str) -> Any:
    if text[:1] not in {"[", "{"}:  # the schema makes numbers and truth values of a text
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


# Errors


class _InFile:
    def __init__(self, path: Path | None, text: str) -> None:
        self._path = path
        self._text = text

    def name(self, keys: Sequence[str]) -> str:
        line = _line_of(self._path, self._text, keys) if self._path else None
        return f"{self._path}, line {line}" if line else str(self._path)


class _InEnvironment:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def name(self, keys: Sequence[str]) -> str:
        del keys
        return "The environment"


class _InCommand:
    def name(self, keys: Sequence[str]) -> str:
        return f"--{keys[-1].replace('_', '-')}" if keys else "The command line"


def _check(values: Mapping[str, Any], place: _InFile | _InEnvironment | _InCommand) -> Settings:
    try:
        return Settings.model_validate(values, strict=False)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    keys = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    where, key = place.name(keys), ".".join(keys)
    if isinstance(place, _InEnvironment):
        where = PREFIX + "__".join(part.upper() for part in keys)
    if first["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(sorted(known))}."
        raise InvalidArgument(f"{where}: unknown key {key!r}.", hint=hint, param=key)
    if first["type"] == "missing":
        raise InvalidArgument(f"{where}: {key!r} is required.", param=key)
    raise InvalidArgument(f"{where}: invalid value for {key!r}: {first['msg']}.", param=key)


def _known_keys(tables: Sequence[str]) -> list[str]:
    """Return what may stand in the table of that name."""
    from lib_mlx.config import Profile
    from lib_mlx.settings.settings import ModelSettings

    if not tables:
        return list(Settings.model_fields)
    if tables[0] in {"models", "profiles"}:
        return list((ModelSettings if tables[0] == "models" else Profile).model_fields)
    kind = Settings.model_fields[tables[0]].annotation
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel) else []
