"""Layers that compute with weights as they are stored."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import gemma
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.rope_utils import Llama3RoPE
from mlx_lm.models.switch_layers import SwitchLinear

import build_ffi
from lib_mlx import memory
from lib_mlx.engine import blas, heap
from lib_mlx.engine.worker import get_worker
from lib_mlx.models import packed
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_weights
from lib_mlx.models.standins import calls

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lib_mlx.config import CpuWeights

pytestmark = pytest.mark.skipif(not build_ffi.HAS_CPU, reason="Linux only")

ROWS = (*range(1, 18), 64, 300)


@pytest.fixture(params=[0, 1, 2])
def level(shim: ctypes.CDLL, request: pytest.FixtureRequest) -> Iterator[int]:
    """Each level of instructions that this processor has."""
    if shim.lib_mlx_standins_set_level(request.param) != request.param:
        pytest.skip("this processor does not have it")
    yield request.param
    shim.lib_mlx_standins_set_level(2)


def on_engine(work: Callable[[], Any]) -> Any:
    """Run MLX code where it belongs."""
    return get_worker().run(work)


def normal(*shape: int) -> mx.array:
    """Return random numbers, the same for the same shape."""
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


class Network(nn.Module):
    """Layers by name."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self[name] = layer


def compare(layer: Any, inputs: list[Any], *, call: Callable[..., mx.array] | None = None) -> float:
    """Pack a layer; return by how much its results change, over the largest of them."""
    run = call or (lambda layer, *arguments: layer(*arguments))
    expected = [run(layer, *arguments).astype(mx.float32) for arguments in inputs]
    mx.eval(expected)
    packed.pack(Network(layer=layer, linear=nn.QuantizedLinear(64, 64)))
    found = [run(layer, *arguments) for arguments in inputs]
    assert isinstance(layer, packed.Packed)
    assert all(array.dtype == mx.float32 for array in found)
    errors = [mx.abs(a - b).max() / mx.abs(b).max() for a, b in zip(found, expected, strict=True)]
    return float(mx.stack(errors).max().item())  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("scale", [mx.float32, mx.float16, mx.bfloat16])
def test_products_of_quantised_weights(level: int, bits: int, group_size: int, scale: mx.Dtype) -> None:
    """They are those of the dequantised weights in float32, for any number of rows, with a bias and without."""

    def work() -> float:
        worst = 0.0
        for columns, rows, bias in ((128, 1, True), (384, 37, False), (640, 70, True)):
            layer = nn.QuantizedLinear(columns, rows, bias, group_size, bits)
            layer.scales, layer.biases = layer.scales.astype(scale), layer.biases.astype(scale)
            layer.weight = mx.random.randint(0, 2**31, layer.weight.shape).astype(mx.uint32)
            if bias:
                layer.bias = normal(rows)

            def multiply(layer: Any, x: mx.array) -> mx.array:
                if isinstance(layer, packed.Packed):
                    return layer(x)
                scales, biases = layer.scales.astype(mx.float32), layer.biases.astype(mx.float32)
                y = x @ mx.dequantize(layer.weight, scales, biases, group_size, bits).T
                return y + layer.bias if "bias" in layer else y

            worst = max(worst, compare(layer, [(normal(count, columns),) for count in ROWS], call=multiply))
        return worst

    assert on_engine(work) < 1e-5


@pytest.mark.parametrize("kind", [mx.float16, mx.bfloat16])
def test_products_of_half_precision(level: int, kind: mx.Dtype) -> None:
    """They are those of the same weights in float32, whatever the shape."""

    def work() -> float:
        worst = 0.0
        for columns, rows in ((1, 5), (7, 1), (100, 37), (128, 70)):
            layer = nn.Linear(columns, rows)
            layer.set_dtype(kind)

            def multiply(layer: Any, x: mx.array) -> mx.array:
                if isinstance(layer, packed.Packed):
                    return layer(x)
                return x @ layer.weight.astype(mx.float32).T + layer.bias.astype(mx.float32)

            worst = max(worst, compare(layer, [(normal(count, columns),) for count in ROWS], call=multiply))
        return worst

    assert on_engine(work) < 1e-5


def test_shapes_of_inputs(shim: ctypes.CDLL) -> None:
    """A vector, batches, and inputs that do not lie in order are multiplied, too, and so are sums with a product."""

    def work() -> float:
        batch = normal(3, 64, 5)
        inputs: list[Any] = [normal(64), normal(1, 5, 64), normal(3, 1, 64), normal(2, 3, 4, 64), normal(1, 1, 64)]
        inputs += [batch.transpose(0, 2, 1), normal(64, 20).T, normal(9, 128)[::2, 32:96], normal(4, 1, 64)[:0]]
        layer = nn.QuantizedLinear(64, 48, bits=4)
        expected = [layer(x) for x in inputs] + [normal(5, 48) + layer(normal(5, 64)) * 2]
        packed.pack(Network(layer=layer))
        found = [layer(x) for x in inputs]
        found.append(mx.addmm(normal(5, 48), normal(5, 64), layer._stand_in, alpha=2.0))
        return max(float(mx.abs(a - b).max().item()) if a.size else 0.0 for a, b in zip(found, expected, strict=True))

    assert on_engine(work) < 1e-4


@pytest.mark.parametrize("kind", [mx.float16, mx.bfloat16, "quantised"])
def test_embeddings(shim: ctypes.CDLL, kind: Any) -> None:
    """Rows are looked up, and inputs multiplied for tied weights, in float32."""

    def work() -> float:
        layer: Any = nn.Embedding(50, 64)
        if kind == "quantised":
            layer = layer.to_quantized(bits=8)
            layer.scales, layer.biases = layer.scales.astype(mx.float16), layer.biases.astype(mx.float16)
        else:
            layer.set_dtype(kind)
        ids, x = mx.array([[3, 49], [0, 3]]), normal(2, 2, 64)
        dense = layer(mx.arange(50)).astype(mx.float32)
        expected = [dense[ids], x @ dense.T]
        packed.pack(Network(layer=layer))
        found = [layer(ids), layer.as_linear(x)]
        assert [array.dtype for array in found] == [mx.float32] * 2
        return max(float(mx.abs(a - b).max().item()) for a, b in zip(found, expected, strict=True))  # type: ignore[arg-type]

    # MLX dequantises with float16 scales in float16.
    assert on_engine(work) < (5e-3 if kind == "quantised" else 1e-5)


def mlp(activation: Callable[[mx.array], mx.array], bias: bool) -> nn.Module:
    """An MLP as most families have it."""

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = (nn.QuantizedLinear(64, 96, bias, bits=4, group_size=32) for _ in range(2))
            self.down_proj = nn.QuantizedLinear(96, 64, bias, bits=8, group_size=32)
            if bias:
                self.gate_proj.bias, self.down_proj.bias = normal(96), normal(64)

        def __call__(self, x: mx.array) -> mx.array:
            return self.down_proj(activation(self.gate_proj(x)) * self.up_proj(x))

    return MLP()


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.RMSNorm(64),
    "norm less 1": lambda: gemma.RMSNorm(64),
    "silu": lambda: mlp(nn.silu, False),
    "silu, biases": lambda: mlp(nn.silu, True),
    "gelu": lambda: mlp(nn.gelu_approx, True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_modules(level: int, name: str) -> None:
    """Norms and MLPs give what MLX gives, for any number of rows."""

    def work() -> float:
        layer: Any = WHOLE[name]()
        if "norm" in name:
            layer.weight = normal(64)
        return compare(layer, [(normal(rows, 64) * 10,) for rows in ROWS])

    assert on_engine(work) < 1e-4


@pytest.mark.parametrize("activation", [nn.relu, nn.gelu, mx.sin])
def test_an_unknown_activation(shim: ctypes.CDLL, activation: Callable[[mx.array], mx.array]) -> None:
    """An MLP that does something else stays as it is; its layers are packed."""

    def work() -> tuple[bool, bool]:
        layer: Any = mlp(activation, False)
        packed.pack(layer)
        return isinstance(layer, packed.Packed), isinstance(layer.down_proj, packed.Packed)

    assert on_engine(work) == (False, True)


def test_more_than_one_argument(shim: ctypes.CDLL) -> None:
    """What is called with more than an input is computed by the module's own class."""

    class GatedRMSNorm(nn.RMSNorm):
        def __call__(self, x: mx.array, gate: mx.array | None = None) -> mx.array:
            x = super().__call__(x)
            return x if gate is None else x * gate

    def work() -> float:
        return compare(GatedRMSNorm(64), [(normal(2, 64),), (normal(2, 64), normal(2, 64))])

    assert on_engine(work) < 1e-5


SCALING = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPES: dict[str, Callable[[], nn.Module]] = {
    "halves": lambda: nn.RoPE(64),
    "neighbours": lambda: nn.RoPE(64, traditional=True, base=1e6, scale=0.5),
    "some": lambda: nn.RoPE(32),
    "scaled": lambda: Llama3RoPE(64, base=500_000, scaling_config=SCALING),
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions(shim: ctypes.CDLL, name: str) -> None:
    """They are MLX's, for one offset or one for each row, also with other widths or types than those of the model."""

    def work() -> float:
        x, half = normal(2, 3, 5, 64), normal(2, 3, 5, 64).astype(mx.bfloat16)
        attention = nn.Module()
        attention.rope, attention.head_dim = ROPES[name](), 64
        offsets: list[Any] = [0, 7, 4000, mx.array(3), mx.array([-2, 90])]
        inputs = [(x, offset) for offset in offsets] + [(x[:, :, :1], offset) for offset in offsets]
        inputs += [(x.transpose(0, 2, 1, 3), 9), (normal(2, 3, 5, 96), 9), (half, 9), (normal(2, 5, 64), 9)]

        def rotate() -> list[mx.array]:
            return [attention.rope(x, offset=offset) for x, offset in inputs] + [attention.rope(x)]

        expected = rotate()
        packed.pack(Network(attention=attention, linear=nn.QuantizedLinear(64, 64)))
        assert isinstance(attention.rope, packed.Rotation)
        return max(float(mx.abs(a - b).max().item()) for a, b in zip(rotate(), expected, strict=True))  # type: ignore[arg-type]

    assert on_engine(work) < 2e-3


def test_what_is_not_packed(shim: ctypes.CDLL) -> None:
    """Other numbers of bits, other schemes, experts and float32 stay MLX's; the same layers beside them are packed."""

    def work() -> dict[str, bool]:
        layers: dict[str, Any] = {
            "plain": nn.Linear(64, 64),
            "six": nn.QuantizedLinear(64, 64, bits=6),
            "mxfp4": nn.QuantizedLinear(64, 64, group_size=32, bits=4, mode="mxfp4"),
            "experts": SwitchLinear(64, 64, 2).to_quantized(bits=4),
            "narrow": nn.QuantizedLinear(96, 64, group_size=32, bits=2),
            "four": nn.QuantizedLinear(64, 64, bits=4),
        }
        packed.pack(Network(**layers))
        return {name: isinstance(layer, packed.Packed) for name, layer in layers.items()}

    assert [name for name, is_packed in on_engine(work).items() if is_packed] == ["four"]


def test_wrong_results_leave_mlx_as_it_is(
    shim: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer whose results differ from MLX's is left to MLX, and a debug message says so."""
    monkeypatch.setattr(packed, "_TOLERANCE", -1.0)
    caplog.set_level(logging.DEBUG)

    def work() -> tuple[type, int, int]:
        layer = nn.QuantizedLinear(64, 64)
        size = packed.pack(Network(layer=layer))
        before = calls(shim)
        mx.eval(layer(normal(2, 64)))
        return type(layer), size, calls(shim) - before

    assert on_engine(work) == (nn.QuantizedLinear, 0, 0)
    assert "MLX computes" in caplog.text


def test_products_that_do_not_reach_us(shim: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MLX has its own BLAS, nothing is packed."""
    shim.lib_mlx_blas_restore()
    try:
        assert on_engine(lambda: packed.pack(Network(layer=nn.QuantizedLinear(64, 64)))) == 0
    finally:
        monkeypatch.setattr(blas, "_bound", None)
        assert on_engine(blas.bind)


def test_two_models(shim: ctypes.CDLL) -> None:
    """Each has its own weights; the second's go on when the first is gone."""

    def work() -> float:
        layers = [nn.QuantizedLinear(64, 64, False) for _ in range(2)]
        x = normal(3, 64)
        expected = [layer(x) for layer in layers]
        mx.eval(expected)
        networks = [Network(layer=layer) for layer in layers]
        for network in networks:
            packed.pack(network)
        found = [layer(x) for layer in layers]
        mx.eval(found)
        del networks[0], layers[0], network
        heap.release()
        found.append(layers[0](x))
        return max(
            float(mx.abs(a - b).max().item())  # type: ignore[arg-type]
            for a, b in zip(found, [*expected, expected[1]], strict=True)
        )

    assert on_engine(work) < 1e-5


def test_more_models_than_there_is_room_for(shim: ctypes.CDLL) -> None:
    """The last ones stay MLX's; when models are gone, there is room again."""

    def work() -> tuple[int, bool]:
        networks = [Network(layer=nn.QuantizedLinear(64, 64)) for _ in range(70)]
        count = sum(packed.pack(network) > 0 for network in networks)
        networks.clear()
        heap.release()
        return count, packed.pack(Network(layer=nn.QuantizedLinear(64, 64))) > 0

    count, again = on_engine(work)
    assert 60 <= count <= 64
    assert again


def load(path: Path, wanted: CpuWeights) -> Any:
    """Load the network on the engine thread."""
    return on_engine(lambda: load_weights(inspect(path), lambda _: None, lambda: False, wanted)).network


@pytest.mark.model
def test_logits_of_a_real_model(shim: ctypes.CDLL, smollm2: Path) -> None:
    """SmolLM2's logits and its greedy tokens are those of float32."""

    def logits(network: Any) -> Any:
        ids = [list(range(100 + row, 140 + row)) for row in range(3)]
        return np.array(network(mx.array(ids)).tolist())

    def decode(network: Any) -> list[int]:
        cache, ids = make_prompt_cache(network), [504, 3575, 282, 4649, 314]
        made: list[int] = []
        for _ in range(24):
            made.append(int(network(mx.array([ids]), cache=cache)[0, -1].argmax().item()))
            ids = made[-1:]
        return made

    networks = [load(smollm2, "quantized"), load(smollm2, "float32")]
    few, exact = (on_engine(lambda network=network: logits(network)) for network in networks)
    assert np.abs(few - exact).max() < 2e-3
    tokens = [on_engine(lambda network=network: decode(network)) for network in networks]
    assert tokens[0] == tokens[1]


@pytest.mark.model
def test_memory_of_a_real_model(shim: ctypes.CDLL, smollm2: Path) -> None:
    """A packed model takes little more than its file, and gives that back."""

    def resident() -> int:
        heap.release()
        return memory.resident_bytes()

    load(smollm2, "quantized")
    before = on_engine(resident)
    network = load(smollm2, "quantized")
    taken = on_engine(resident) - before
    del network
    left = on_engine(resident) - before
    assert 90e6 < taken < 115e6
    assert left < 10e6
