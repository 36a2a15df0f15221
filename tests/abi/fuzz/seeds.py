"""What the fuzzer begins with: lists of calls, and the words it may put into them."""

from __future__ import annotations

from lib_mlx.config import LoadConfig, Profile, ServedModel, ServerConfig

GOOD = 'l0{"model_path": "model", "model_id": "m"}'
LAZY = 'l0{"model_path": "model", "wait": false}'

CALLS: tuple[tuple[str, ...], ...] = (
    ("v0", "d0", "q0", "u0", "t0", "p0", "r0", "s0", "s0{}"),
    ("q5", "q-", "u7", "t8", "p9", "r:", "s;{}"),
    ("l0{}", "l0", "l0null", "l0[]", 'l0"text"', "l0{", "l0{} {}", "l0nonsense", "l01e999", "l0{1: 2}"),
    ('l0{"model_path": "none"}', 'l0{"modelPath": ""}', 'l0{"model_path": "."}', 'l0{"model_path": ".."}'),
    ('l0{"model_path": "damaged"}', 'l0{"model_path": "broken.gguf"}', 'l0{"model_path": "models.toml"}'),
    ('l0{"model_path": 7}', 'l0{"model_path": null}', 'l0{"model_path": ["model"]}', 'l0{"model_path": {"a": 1}}'),
    ('l0{"model_path": "model", "wait": "no"}', 'l0{"model_path": "model", "surprise": 1}', 'l0{"model_path": NaN}'),
    ('l0{"model_path": "model", "context_length": 99999999999999999999999}', 'l0{"context_length": -1}'),
    ('l0{"model_path": "model", "memory_limit_bytes": 1}', 'l0{"model_path": "model", "kv_bits": 8}', "s0", "u0"),
    ('l0{"model_path": "model", "context_length": 1e308}', 'l0{"kv_bits": 4.0}', 'l0{"prefix_cache_bytes": -0}'),
    ('l0{"model_path": "\\ud800"}', 'l0{"model_path": "\udcff\udcfe"}', 'l0{"model_path": "\\u0000"}', 'l0{"é": "日"}'),
    ('l0{"model_path": "' + "a" * 5000 + '"}', 'l0{"' + "k" * 3000 + '": 1}'),
    ('l0{"x":' + "[" * 3000 + "]" * 3000 + "}", "l0" + "[" * 9000, 'l0{"a":' * 1500),
    (GOOD, "q0", 's0{"port": 0}', "q0", "p0", "r0", "s0", "t0", "u0", "q0"),
    (GOOD, 's0{"port": -1}', 's0{"port": 65536}', 's0{"host": "127.0.0.1", "queue_limit": 0}', 's0{"prot": 1}'),
    (GOOD, 's0{"uds": "socket", "api_key": "auto", "allowed_hosts": ["*"]}', "q0", "t0", 's0{"uds": "model"}'),
    (GOOD, 's0{"models": [{"model_path": "model", "model_id": "b", "keep_alive": "5m"}], "profiles": {"p": {}}}'),
    (GOOD, 's0{"models_file": "models.toml", "model_store": true, "keep_alive": -1, "memory_limit_bytes": 9}'),
    (GOOD, 's0{"models_file": "none"}', 's0{"models_file": "model"}', 's0{"profiles": {"p": {"max_tokens": 0}}}'),
    (LAZY, "q0", "s0", "p0", "u0", "q0"),
    (LAZY, LAZY, "q1", "u0", "d0", "q1", LAZY, "q2"),
    (GOOD, "u0", "u0", "s0", "t0", "p0", "p0", "r0"),
    ('l0{"model_path": "model", "prefix_cache_path": "cache", "prefix_cache_bytes": 100000}', "s0", "u0"),
    ('l0{"model_path": "model", "isolation": "process"}', "q0", "s0", "p0", "r0", "t0", "u0"),
    ('l0{"model_path": "model", "isolation": "process", "wait": false}', "u0", 'l0{"isolation": "thread"}'),
    ('l0{"model_path": "model", "log_file": "log", "log_level": "debug"}', 's0{"suspended_requests": "fail"}', "p0"),
    ('l0{"model_path": "model", "log_file": "model"}', 'l0{"model_path": "model", "log_level": "loud"}'),
    ('l0{"model_path": "model", "prefix_cache_path": "models.toml"}', 'l0{"revision": "x", "model_path": "model"}'),
)


def seeds() -> list[bytes]:
    """Return the inputs; NUL ends each call."""
    return [b"".join(call.encode("utf-8", "surrogateescape") + b"\0" for call in calls) for calls in CALLS]


def dictionary() -> str:
    """Return libFuzzer's dictionary: the keys that the library knows, and JSON."""
    keys = {name for kind in (LoadConfig, ServerConfig, ServedModel, Profile) for name in kind.model_fields}
    words = [
        *sorted(f'\\"{key}\\": ' for key in keys),
        "null",
        "true",
        "1e999",
        "\\\\ud800",
        "\\x00",
        "[[[[",
        '\\"model\\"',
    ]
    return "".join(f'"{word}"\n' for word in words)
