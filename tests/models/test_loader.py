"""Loading checkpoints that are wrong in ways their files do not show."""

from __future__ import annotations

import json
import shutil
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lib_mlx import memory
from lib_mlx.engine import engine
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import CorruptModel, LoadCancelled, UnsupportedModel
from lib_mlx.models import cpu_library
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_weights

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

    from lib_mlx.config import CpuWeights
    from lib_mlx.models.loader import Weights


@pytest.fixture
def copy(crafted: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return shutil.copytree(crafted, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_unknown_architecture(copy: Path) -> None:
    """It is `unsupported_model`, by name."""
    edit(copy / "config.json", model_type="abacus")
    with pytest.raises(UnsupportedModel, match="abacus"):
        engine.load(inspect(copy))


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_hidden_layers": 7}, {"num_attention_heads": "x"}])
def test_weights_that_do_not_fit_the_config(copy: Path, changes: dict[str, Any]) -> None:
    """They are `corrupt_model`."""
    edit(copy / "config.json", **changes)
    with pytest.raises(CorruptModel):
        engine.load(inspect(copy))


@pytest.mark.parametrize("text", ["{", "{}", ""])
def test_a_damaged_tokenizer(copy: Path, text: str) -> None:
    """It is `corrupt_model`, and names the tokenizer."""
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(CorruptModel, match="tokenizer"):
        engine.load(inspect(copy))


def test_code_in_a_tokenizer_is_not_run(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A tokenizer with code of its own is refused without running it or asking on the terminal."""
    (copy / "evil.py").write_text("print('EVIL')")
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    with pytest.raises(UnsupportedModel, match="code of its own"):
        engine.load(inspect(copy))
    assert "EVIL" not in "".join(capfd.readouterr())


def test_a_failed_load_leaves_no_weights_in_memory(copy: Path) -> None:
    """What was mapped before the error is freed."""
    import mlx.core as mx

    before = mx.get_active_memory()
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptModel):
        engine.load(inspect(copy))
    assert mx.get_active_memory() <= before


def quantise(path: Path, bits: int = 4, mode: str = "affine") -> None:
    """Quantise a checkpoint as mlx-lm would, with the rest in half precision."""

    def work() -> None:
        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_lm.utils import quantize_model

        from lib_mlx.models.upstream import load_model

        network, config = load_model(path)
        network.set_dtype(mx.float16)
        network, config = quantize_model(network, config, 32, bits, mode)
        for file in path.glob("model*"):
            file.unlink()
        mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(network.parameters())))
        (path / "config.json").write_text(json.dumps(config))

    get_worker().run(work)


@pytest.fixture
def quantised(copy: Path) -> Path:
    """A checkpoint whose layers are quantised to 4 bits."""
    quantise(copy)
    return copy


def load(path: Path, **options: Any) -> Weights:
    """Load the weights on the engine thread."""
    work = partial(load_weights, inspect(path), lambda _: None, lambda: False, **options)
    return get_worker().run(work)


def arrays(weights: Weights) -> list[Any]:
    """Return the parameters."""
    from mlx.utils import tree_flatten

    return [array for _, array in tree_flatten(weights.network.parameters())]


@pytest.fixture
def without_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the C for the CPU was not built."""
    monkeypatch.setattr(cpu_library, "load", lambda: None)


@pytest.mark.parametrize(
    ("wanted", "expected"), [("auto", "quantized"), ("float32", "float32"), ("quantized", "quantized")]
)
def test_weights_on_the_cpu(shim: ctypes.CDLL, quantised: Path, wanted: CpuWeights, expected: str) -> None:
    """Quantised weights stay as they are stored, scales too, unless float32 is wanted; the rest becomes float32."""
    weights = load(quantised, cpu_weights=wanted)
    assert (weights.device, weights.kind) == ("cpu", expected)
    stored = {"float16", "uint32"} if expected == "quantized" else set()
    assert {str(array.dtype).removeprefix("mlx.core.") for array in arrays(weights)} == {"float32"} | stored


@pytest.mark.parametrize(
    ("wanted", "expected"), [("auto", "float32"), ("float32", "float32"), ("quantized", "quantized")]
)
def test_weights_without_our_c(without_shim: None, quantised: Path, wanted: CpuWeights, expected: str) -> None:
    """Quantised weights become float32 unless they are to stay; what is not quantised becomes float32 anyway."""
    weights = load(quantised, cpu_weights=wanted)
    assert (weights.device, weights.kind) == ("cpu", expected)
    assert {str(array.dtype).removeprefix("mlx.core.") for array in arrays(weights)} == (
        {"float32"} if expected == "float32" else {"float32", "uint32"}
    )


@pytest.mark.parametrize(("free_mb", "expected"), [(0.1, "quantized"), (0.9, "quantized"), (100, "float32")])
def test_memory_decides(
    without_shim: None, quantised: Path, monkeypatch: pytest.MonkeyPatch, free_mb: float, expected: str
) -> None:
    """What our C cannot pack is dequantised if that takes less than half of the free memory."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=int(free_mb * 1e6)))
    assert load(quantised).kind == expected
    assert load(quantised, cpu_weights="float32").kind == "float32"


def halve(path: Path) -> None:
    """Store a checkpoint in half precision."""
    import mlx.core as mx

    def work() -> None:
        file = str(path / "model.safetensors")
        weights = mx.load(file)
        mx.save_safetensors(file, {name: array.astype(mx.bfloat16) for name, array in weights.items()})

    get_worker().run(work)


def test_half_precision(shim: ctypes.CDLL, copy: Path) -> None:
    """Weights that are stored in half precision stay so, unless float32 is wanted."""
    halve(copy)
    assert load(copy).kind == load(copy, cpu_weights="quantized").kind == "bfloat16"
    assert load(copy, cpu_weights="float32").kind == "float32"


def test_half_precision_is_widened_if_it_fits(without_shim: None, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our C, weights that are stored in half precision become float32, whatever was asked, if they fit."""
    halve(copy)
    assert load(copy).kind == load(copy, cpu_weights="quantized").kind == "float32"
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    assert load(copy).kind == "bfloat16"


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("bits", "mode"), [(2, "affine"), (3, "affine"), (4, "affine"), (6, "affine"), (8, "affine"), (4, "mxfp4")]
)
def test_dequantised_weights_are_exact(
    copy: Path, monkeypatch: pytest.MonkeyPatch, bits: int, mode: str, native: bool
) -> None:
    """They are what MLX's own function gives, with and without our C code, in float32 from beginning to end."""
    import mlx.core as mx

    quantise(copy, bits, mode)
    packed = load(copy, cpu_weights="quantized").network
    if not native:
        monkeypatch.setattr(cpu_library, "load", lambda: None)
    plain = load(copy, cpu_weights="float32").network

    def difference() -> float:
        worst = 0.0
        for name, layer in packed.named_modules():
            if "scales" in layer:
                scheme = (layer.group_size, layer.bits, layer.mode)
                scales, biases = layer.scales, layer.get("biases")
                if mode == "affine":
                    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
                expected = mx.dequantize(layer.weight, scales, biases, *scheme, dtype=mx.float32)
                found = dict(plain.named_modules())[name].weight
                worst = max(worst, mx.abs(found - expected).max().item())
        return worst

    assert get_worker().run(difference) < 1e-6


@pytest.mark.parametrize("wanted", ["auto", "float32"])
def test_progress_of_a_load(shim: ctypes.CDLL, quantised: Path, wanted: CpuWeights) -> None:
    """It rises to 1 while weights are packed or dequantised."""
    seen: list[float] = []
    get_worker().run(lambda: load_weights(inspect(quantised), seen.append, lambda: False, wanted))
    assert seen == sorted(seen)
    assert len(seen) > 3
    assert seen[-1] == 1.0


@pytest.mark.model
def test_dequantising_takes_no_more_memory_than_its_result(smollm2: Path) -> None:
    """Each quantised weight is freed when its successor is there."""
    import mlx.core as mx

    def peak() -> tuple[int, int]:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        weights = load_weights(inspect(smollm2), lambda _: None, lambda: False, "float32")
        return mx.get_peak_memory() - before, sum(array.nbytes for array in arrays(weights))

    peak_bytes, result = get_worker().run(peak)
    assert 500e6 < result <= peak_bytes < 1.1 * result


@pytest.mark.parametrize("wanted", ["auto", "float32"])
def test_preparing_can_be_cancelled(shim: ctypes.CDLL, quantised: Path, wanted: CpuWeights) -> None:
    """A load is cancelled between two slices, also while weights are packed or dequantised."""
    with pytest.raises(LoadCancelled):
        get_worker().run(lambda: load_weights(inspect(quantised), lambda _: None, lambda: True, wanted))


def test_experts_are_dequantised(crafted: Path) -> None:
    """Layers of experts and of heads lose their quantisation, too, with the same results."""
    import mlx.core as mx
    from mlx import nn
    from mlx_lm.models.mla import MultiLinear
    from mlx_lm.models.switch_layers import SwitchLinear

    from lib_mlx.models.cpu_weights import prepare_for_cpu, weight_kind

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = MultiLinear(32, 64, 3)
            self.experts = SwitchLinear(64, 32, 4)
            self.linear = nn.Linear(32, 32)

        def __call__(self, x: mx.array) -> mx.array:
            x = self.heads(x)
            x = self.experts(x[:, None], mx.array([[0], [1], [3]]))
            return self.linear(x)

    def check() -> tuple[float, str, str]:
        network = Network()
        nn.quantize(network, 32, 8)
        x = mx.random.normal((3, 1, 32))
        before, kind = network(x), weight_kind(network)
        mx.eval(before)
        prepare_for_cpu(network, "float32")
        return mx.abs(network(x) - before).max().item(), kind, weight_kind(network)

    difference, before, after = get_worker().run(check)
    assert difference < 1e-4
    assert (before, after) == ("quantized", "float32")
