"""Configuration from JSON and keywords."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_mlx.config import LoadConfig, ServerConfig, parse_config
from lib_mlx.errors import InvalidArgument, InvalidJson, LibMlxError


def test_defaults() -> None:
    """The defaults are those of the C header."""
    load = parse_config(LoadConfig, b'{"model_path": "m"}')
    assert (load.thinking_enabled, load.lazy_encoders, load.wait, load.model_id) == (True, True, True, None)
    assert load.cpu_weights == "auto"
    server = parse_config(ServerConfig, None)
    assert (server.host, server.port, server.queue_limit) == ("127.0.0.1", 0, 64)


def test_camel_case_aliases() -> None:
    """The original package's camelCase keys are accepted."""
    load = parse_config(
        LoadConfig, {"modelPath": "m", "modelId": "x", "thinkingEnabled": False, "cpuWeights": "quantized"}
    )
    assert (load.model_path, load.model_id, load.thinking_enabled) == ("m", "x", False)
    assert load.cpu_weights == "quantized"
    assert parse_config(ServerConfig, '{"queueLimit": 3}').queue_limit == 3


@pytest.mark.parametrize(
    ("values", "param", "words"),
    [
        ({"model_path": "m", "min_pixels": 10, "max_pixels": 5}, "max_pixels", "less than min_pixels"),
        ({}, "model_path", "required"),
        ({"model_path": "m", "modelpth": 1}, "modelpth", "Unknown key 'modelpth'. Did you mean 'model_path'?"),
        ({"model_path": "m", "zzz": 1}, "zzz", "Known keys: thinking_enabled"),
        ({"model_path": 5}, "model_path", "valid string"),
        ({"modelPath": 5}, "modelPath", "valid string"),
        ({"model_path": ""}, "model_path", "at least 1"),
        ({"model_path": "m", "wait": 1}, "wait", "valid boolean"),
        ({"model_path": "m", "cpu_weights": "int8"}, "cpu_weights", "'auto', 'float32' or 'quantized'"),
        ({"model_path": "m", "context_length": 0}, "context_length", "greater than or equal to 1"),
    ],
)
def test_a_bad_key_or_value_is_named(values: dict[str, Any], param: str, words: str) -> None:
    """The error names the key, what is wrong and, for an unknown key, the nearest known one."""
    with pytest.raises(InvalidArgument) as caught:
        parse_config(LoadConfig, values)
    assert caught.value.param == param
    assert words in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"5", b"\xff", b'"x"', b"[" * 5000, b'{"port": NaN}'])
def test_what_is_not_a_json_object(text: bytes) -> None:
    """It is `invalid_json`."""
    with pytest.raises(InvalidJson):
        parse_config(ServerConfig, text)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_configuration_or_an_error(text: bytes) -> None:
    """Nothing else is ever raised."""
    with contextlib.suppress(LibMlxError):
        assert isinstance(parse_config(ServerConfig, text), ServerConfig)


@pytest.mark.parametrize("port", [-1, 65536, "80", 1.5, True])
def test_ports_out_of_range(port: Any) -> None:
    """A port is a number from 0 to 65535."""
    with pytest.raises(InvalidArgument, match="port"):
        parse_config(ServerConfig, {"port": port})


@pytest.mark.parametrize("keep_alive", [-1, "-5m", 0, "90s", 1.5])
def test_a_configuration_survives_json(keep_alive: Any) -> None:
    """What an isolated model's process is told is what its host was told: for ever, too."""
    config = parse_config(
        ServerConfig, {"keep_alive": 5, "models": [{"model_path": "m", "keep_alive": keep_alive}], "port": 8}
    )
    assert parse_config(ServerConfig, config.model_dump_json(exclude_unset=True)) == config
