"""What is exported gives the same numbers in ONNX Runtime as here, and as in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lib_mlx.errors import CorruptModel, UnsupportedFeature, UnsupportedModel
from lib_mlx.export import checkpoint, graph
from lib_mlx.generation import PixelBounds
from tests.grounding.conftest import FIXTURES, MODELS, cases, loaded, picture, tensors

if TYPE_CHECKING:
    from pathlib import Path

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("model", MODELS)
def test_parity(model: str, tmp_path: Path) -> None:
    """For every screenshot, wide, tall, tiny: features within 1e-4, attention within 1e-5."""
    paths = checkpoint.export_onnx(FIXTURES / "models" / model, tmp_path / "onnx")
    assert [path.name for path in paths] == ["vision_tower.onnx", "pointer_head.onnx"]
    tower, head = map(session, paths)
    known = loaded(model)
    for name, case in cases(model).items():
        prompt, ours = known.case(case)
        expected = tensors(model, name)
        bounds = PixelBounds(case["min_pixels"], case["max_pixels"])
        pixels = known.reader.inputs(known.picture(picture(case), bounds))["pixel_values"]
        grid = np.array(prompt.screenshot.grid[1:], np.int64)
        (features,) = tower.run(None, {"pixel_values": pixels, "grid": grid})
        assert np.abs(features - expected["visual_embeds"]).max() < 1e-4, name
        assert np.abs(features - np.array(ours)).max() < 1e-4, name
        (attention,) = head.run(None, {"patches": features, "pointers": expected["pointer_hidden"]})
        assert np.abs(attention - expected["attn_scores"]).max() < 1e-5, name


def test_large_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are beside the graph, in a file that is found from wherever both are."""
    monkeypatch.setattr(graph, "_INLINE_BYTES", 0)
    checkpoint.export_onnx(FIXTURES / "models" / MODELS[0], tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert (tmp_path / "b/pointer_head.onnx.data").stat().st_size > (tmp_path / "b/pointer_head.onnx").stat().st_size
    expected = tensors(MODELS[0], "icon")
    given = {"patches": expected["visual_embeds"], "pointers": expected["pointer_hidden"]}
    (attention,) = session(tmp_path / "b/pointer_head.onnx").run(None, given)
    assert np.abs(attention - expected["attn_scores"]).max() < 1e-5


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model, one that lacks something, or no onnx: each is told."""
    with pytest.raises(UnsupportedModel, match="no GUI-Actor"):
        checkpoint.export_onnx(FIXTURES / "models/tiny-qwen2-vl", tmp_path)
    read = checkpoint._read
    without = {"blocks.1.attn.proj.weight", "projection_dec.2.bias"}
    monkeypatch.setattr(
        checkpoint, "_read", lambda *given: {name: it for name, it in read(*given).items() if name not in without}
    )
    with pytest.raises(CorruptModel, match=r"lacks 'blocks\.1\.attn\.proj\.weight'"):
        checkpoint.export_onnx(FIXTURES / "models" / MODELS[0], tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UnsupportedFeature, match="onnx is not installed") as caught:
        graph.Graph("it")
    assert "lib-mlx[onnx]" in caught.value.hint
