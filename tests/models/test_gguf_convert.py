from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from mlx_lm import load
from mlx_lm.utils import load_model

from lib_mlx.errors import CorruptModel, InvalidArgument, LibMlxError, LoadCancelled, ModelNotFound, UnsupportedModel
from lib_mlx.models.gguf import convert_gguf
from lib_mlx.models.gguf.architectures import ARCHITECTURES
from tests.models.gguf_files import FACTORS, HEAD_DIM, load_arrays, write_gguf

if TYPE_CHECKING:
    from pathlib import Path

LOSSLESS = [Quant.F32, Quant.F16, Quant.BF16, Quant.Q8_0, Quant.Q4_1, Quant.Q4_0]


def logits(model: Any) -> np.ndarray[Any, Any]:
    model.set_dtype(mx.float32)
    tokens = mx.array([[5, 60, 263, 17, 200, 101, 7, 99] * 6])
    return np.array(model(tokens)[0])


@pytest.mark.parametrize("quant", LOSSLESS, ids=lambda quant: quant.name)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_converted_model_computes_what_the_original_does(arch: str, quant: Quant, tmp_path: Path) -> None:
    """Every architecture in every lossless type gives the logits of the model whose weights were rounded to it."""
    sample = write_gguf(tmp_path / "m.gguf", arch, quant)
    model, config = load_model(convert_gguf(sample.path, tmp_path / "m"))
    assert ("quantization" in config) == quant.name.startswith("Q")
    expected = logits(sample.model)
    assert expected.std() > 0.05
    np.testing.assert_allclose(logits(model), expected, atol=2e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "phi3"])
def test_an_untied_head_is_kept(arch: str, tmp_path: Path) -> None:
    """A model with `output.weight` has its own head, not the embeddings."""
    sample = write_gguf(tmp_path / "m.gguf", arch, tied=False)
    model, config = load_model(convert_gguf(sample.path, tmp_path / "m"))
    assert config["tie_word_embeddings"] is False
    np.testing.assert_allclose(logits(model), logits(sample.model), atol=1e-3)


def test_the_arrays_are_those_of_mlx(tmp_path: Path) -> None:
    """Packed words, scales and biases are bit for bit what `mlx.core.load` makes of the same blocks."""
    for quant in (Quant.Q4_0, Quant.Q4_1, Quant.Q8_0):
        sample = write_gguf(tmp_path / f"{quant.name}.gguf", "qwen2", quant)
        target = convert_gguf(sample.path, tmp_path / quant.name)
        ours = load_arrays(target / "model.safetensors")
        theirs = load_arrays(sample.path)
        for part in ("weight", "scales", "biases"):
            left, right = ours[f"model.layers.1.mlp.down_proj.{part}"], theirs[f"blk.1.ffn_down.{part}"]
            assert left.dtype == right.dtype
            assert mx.array_equal(left, right).item()


def test_vectors_are_shortened_only_where_that_is_exact(tmp_path: Path) -> None:
    """A norm that float16 cannot hold stays float32, so that nothing is lost."""
    sample = write_gguf(tmp_path / "m.gguf", "qwen2")
    raw = bytearray(sample.path.read_bytes())
    norm = sample.weights["model.norm.weight"].astype("<f4").tobytes()
    at = raw.index(norm)
    raw[at : at + 4] = np.float32(1 + 2**-20).tobytes()
    sample.path.write_bytes(raw)
    arrays = load_arrays(convert_gguf(sample.path, tmp_path / "m") / "model.safetensors")
    assert arrays["model.norm.weight"].dtype == mx.float32
    assert arrays["model.layers.0.input_layernorm.weight"].dtype == mx.float16


def test_the_directory_is_a_normal_model(tmp_path: Path) -> None:
    """mlx-lm loads model, tokenizer, template and end tokens from the directory alone."""
    sample = write_gguf(tmp_path / "m.gguf", "qwen3", Quant.Q4_0, metadata={"tokenizer.ggml.eot_token_id": 265})
    _, tokenizer = load(str(convert_gguf(sample.path, tmp_path / "m")))[:2]
    assert tokenizer.eos_token_ids == {264, 265}
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    assert prompt == [263, 259, 264]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 128,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_rotary_scaling_reaches_the_config(metadata: dict[str, Any], scaling: dict[str, Any], tmp_path: Path) -> None:
    """Linear and YaRN scaling are named in config.json as transformers names them."""
    keys = {f"qwen2.{key}": value for key, value in metadata.items()}
    sample = write_gguf(tmp_path / "m.gguf", "qwen2", metadata=keys)
    config = json.loads((convert_gguf(sample.path, tmp_path / "m") / "config.json").read_text())
    assert scaling.items() <= config["rope_scaling"].items()


@pytest.mark.parametrize("arch", ["gemma", "gemma2", "phi2"])
def test_a_scaling_that_mlx_lm_passes_over(arch: str, tmp_path: Path) -> None:
    """Where mlx-lm's model has no rotary scaling, a file that wants one is refused: it would say something else."""
    wanted = {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": 4.0}
    with pytest.raises(UnsupportedModel, match="mlx-lm does not do"):
        convert_gguf(write_gguf(tmp_path / "m.gguf", arch, metadata=wanted).path, tmp_path / "m")


def test_llama3_divisors_are_recognised(tmp_path: Path) -> None:
    """The divisors of Llama 3.1's rotary scaling become `rope_scaling`; any others are refused."""
    wavelengths = 2 * np.pi * 20000.0 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    divisors = [
        1.0 if w < 8192 / 4 else 8.0 if w > 8192 else 1 / ((1 - (s := (8192 / w - 1) / 3)) / 8 + s) for w in wavelengths
    ]
    sample = write_gguf(tmp_path / "m.gguf", extra={"rope_freqs.weight": np.array(divisors, np.float32)})
    config = json.loads((convert_gguf(sample.path, tmp_path / "m") / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["rope_scaling"]["factor"] == 8.0
    other = np.linspace(1, 9, HEAD_DIM // 2, dtype=np.float32)
    sample = write_gguf(tmp_path / "n.gguf", extra={"rope_freqs.weight": other})
    with pytest.raises(UnsupportedModel, match="rotary"):
        convert_gguf(sample.path, tmp_path / "n")


def test_phis_divisors(tmp_path: Path) -> None:
    """Both lists of divisors become `rope_scaling`; a factor or a number of divisors that does not fit is an error."""
    sample = write_gguf(tmp_path / "m.gguf", "phi3")
    config = json.loads((convert_gguf(sample.path, tmp_path / "m") / "config.json").read_text())
    assert FACTORS.items() <= config["rope_scaling"].items()
    assert (config["original_max_position_embeddings"], config["partial_rotary_factor"]) == (128, 0.75)
    sample = write_gguf(tmp_path / "n.gguf", "phi3", metadata={"phi3.rope.scaling.attn_factor": 1.5})
    with pytest.raises(UnsupportedModel, match=r"scales attention by 1\.5"):
        convert_gguf(sample.path, tmp_path / "n")
    sample = write_gguf(tmp_path / "o.gguf", "phi3", metadata={"phi3.rope.dimension_count": HEAD_DIM // 2})
    with pytest.raises(CorruptModel, match="rotary divisors"):
        convert_gguf(sample.path, tmp_path / "o")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metadata": {"general.architecture": "mamba"}}, UnsupportedModel, "'mamba'"),
        ({"metadata": {"llama.expert_count": 8}}, UnsupportedModel, "mixture of experts"),
        ({"metadata": {"llama.rope.scaling.type": "su", "llama.rope.scaling.factor": 2.0}}, UnsupportedModel, "'su'"),
        ({"metadata": {"llama.attention.head_count_kv": [2, 1]}}, UnsupportedModel, "head_count_kv"),
        ({"metadata": {"llama.rope.dimension_count": 8}}, UnsupportedModel, "unusual shape"),
        ({"metadata": {"split.count": 3}}, UnsupportedModel, "split"),
        ({"metadata": {"tokenizer.ggml.pre": "gpt-9"}}, UnsupportedModel, "'gpt-9'"),
        ({"metadata": {"tokenizer.ggml.pre": None}}, UnsupportedModel, "none"),
        ({"metadata": {"tokenizer.ggml.model": "bert"}}, UnsupportedModel, "'bert'"),
        ({"metadata": {"llama.feed_forward_length": 128}}, CorruptModel, "shape"),
        ({"metadata": {"llama.block_count": None}}, CorruptModel, "block_count"),
        ({"metadata": {"llama.block_count": (1 << 31) - 1}}, CorruptModel, "more than it has tensors"),
        ({"metadata": {"llama.rope.freq_base": "fast"}}, CorruptModel, "no number"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 9999}}, CorruptModel, "eos"),
        ({"metadata": {"tokenizer.ggml.tokens": ["a", "a"]}}, CorruptModel, "tokens"),
        ({"drop": "blk.1.ffn_up.weight"}, CorruptModel, "lacks"),
        ({"drop": "token_embd.weight"}, CorruptModel, "no embeddings"),
        ({"extra": {"blk.0.ssm_a": np.zeros(4, np.float32)}}, UnsupportedModel, "ssm_a"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(
    change: dict[str, Any], error: type[LibMlxError], message: str, tmp_path: Path
) -> None:
    """A file that is not understood in full is an error that names the reason, and leaves nothing behind."""
    sample = write_gguf(tmp_path / "m.gguf", **change)
    with pytest.raises(error, match=message):
        convert_gguf(sample.path, tmp_path / "out" / "m")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_k_quants_are_refused_with_a_way_out(tmp_path: Path) -> None:
    """A type MLX would silently widen to float16 is refused, and the hint says what to do."""
    sample = write_gguf(tmp_path / "m.gguf", "qwen2", Quant.Q8_0)
    raw = sample.path.read_bytes()
    at = raw.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16  # rank and two dimensions come first
    assert raw[at : at + 4] == int(Quant.Q8_0).to_bytes(4, "little")
    sample.path.write_bytes(raw[:at] + int(Quant.Q5_0).to_bytes(4, "little") + raw[at + 4 :])
    with pytest.raises(UnsupportedModel, match="Q5_0") as caught:
        convert_gguf(sample.path, tmp_path / "m")
    assert "mlx_lm.convert" in caught.value.hint
    assert list(tmp_path.iterdir()) == [sample.path]


def test_a_cancelled_conversion_leaves_nothing(tmp_path: Path) -> None:
    """Cancelling between tensors raises LoadCancelled and removes the unfinished directory."""
    sample = write_gguf(tmp_path / "m.gguf")
    seen: list[tuple[int, int]] = []
    with pytest.raises(LoadCancelled):
        convert_gguf(sample.path, tmp_path / "m", lambda *step: seen.append(step), lambda: len(seen) == 5)
    assert len(seen) == 5
    assert list(tmp_path.iterdir()) == [sample.path]


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    """Progress grows with each tensor up to the number of bytes it announced."""
    sample = write_gguf(tmp_path / "m.gguf")
    seen: list[tuple[int, int]] = []
    convert_gguf(sample.path, tmp_path / "m", lambda *step: seen.append(step))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_an_existing_directory_is_not_overwritten(tmp_path: Path) -> None:
    """Converting onto something that exists is refused."""
    sample = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "m").mkdir()
    with pytest.raises(InvalidArgument):
        convert_gguf(sample.path, tmp_path / "m")


def test_two_conversions_at_once_agree(tmp_path: Path) -> None:
    """Of two threads converting to one place both succeed and one complete directory remains."""
    sample = write_gguf(tmp_path / "m.gguf")
    barrier = threading.Barrier(2)
    failures: list[BaseException] = []

    def meet(done: int, total: int) -> None:
        if done == total:
            barrier.wait(20)

    def convert() -> None:
        try:
            convert_gguf(sample.path, tmp_path / "m", meet)
        except BaseException as error:  # noqa: BLE001 - reported by the assertion
            failures.append(error)

    threads = [threading.Thread(target=convert) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.gguf"]
    load_model(tmp_path / "m")


def test_a_missing_file_is_model_not_found(tmp_path: Path) -> None:
    """A path that does not exist is `model_not_found`."""
    with pytest.raises(ModelNotFound):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "m")
