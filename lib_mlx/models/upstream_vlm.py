"""The one place that touches mlx-vlm, public or not (pinned to 0.7; tests/models/test_upstream_vlm.py).

Its loader reads config and weights by functions of its own module; while it runs they are ours, which forgive what
real checkpoints are like (a tied head that is stored all the same, configurations re-saved by transformers 5) and
tell what does not fit instead of dropping it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import CorruptModel, LibMlxError, UnsupportedModel
from lib_mlx.models.deferred import importing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import mlx.core as mx
    from numpy.typing import NDArray

    from lib_mlx.models.checkpoint import Checkpoint

POINTER_HEAD = "multi_patch_pointer_head."
"""GUI-Actor's head, which is not part of the network (see `lib_mlx.grounding`)."""
_SHOWN = 4  # names of tensors in an error
_lock = threading.Lock()
_imported: set[str] = set()  # model types


@contextlib.contextmanager
def _unchanged_environment() -> Iterator[None]:
    """Keep `import mlx_vlm` from setting variables of transformers (mlx_vlm/__init__.py:4)."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before


def import_mlx_vlm(checkpoint: Checkpoint) -> None:
    """Import mlx-vlm's part for `checkpoint`, which takes seconds; at once if that has been done.

    Raises:
        UnsupportedModel: it is not installed, or does not know the architecture.
    """
    if importlib.util.find_spec("mlx_vlm") is None:
        raise UnsupportedModel(
            f"{checkpoint.path.name!r} reads images or audio, and mlx-vlm is not installed.",
            hint="pip install 'lib-mlx[vision]'",
        )
    if checkpoint.model_type in _imported:  # the engine thread never waits here for another load
        return
    with importing, _unchanged_environment():
        from mlx_vlm import utils

        kind = utils.get_model_type(checkpoint.config)
        # Asked first: the loader would log to a handler of its own on the host's root logger.
        if kind is None or importlib.util.find_spec(f"mlx_vlm.models.{kind}") is None:
            raise UnsupportedModel(
                f"The architecture {checkpoint.model_type!r} is not supported.",
                hint="mlx-lm and mlx-vlm list what they support.",
            )
        importlib.import_module(f"mlx_vlm.models.{kind}")
        _imported.add(checkpoint.model_type)


def load_model(checkpoint: Checkpoint) -> tuple[Any, dict[str, mx.array]]:
    """Return mlx-vlm's model of `checkpoint`, not evaluated, and the tensors of a pointer head. Engine thread only.

    Raises:
        CorruptModel: tensors are missing, or are none of the architecture's.
        Exception: whatever mlx-vlm raises for a checkpoint that it cannot read.
    """
    from mlx_vlm import utils

    apart: dict[str, mx.array] = {}
    with _steered(checkpoint, apart):
        model = utils.load_model(checkpoint.path, lazy=True)
    return model, apart


@contextlib.contextmanager
def _steered(checkpoint: Checkpoint, apart: dict[str, mx.array]) -> Iterator[None]:
    import mlx.core as mx
    from mlx_vlm import utils

    config = normalised_config(checkpoint.config)
    install = utils.load_model_weights

    def read(file: str) -> dict[str, mx.array]:  # upstream's writes to the file if it knows a dtype better
        loaded: Any = mx.load(file)
        tensors = {_normalised_name(name): array for name, array in loaded.items()}
        for name in [name for name in tensors if name.startswith(POINTER_HEAD)]:
            apart[name] = tensors.pop(name)
        return tensors

    def read_config(_path: Path, **_: Any) -> dict[str, Any]:
        return copy.deepcopy(config)  # upstream writes into it

    def install_checked(model: Any, config: Any, weights: dict[str, Any], path: Path, **options: Any) -> Any:
        weights = _without_tied_head(model, weights)
        try:
            return install(model, config, weights, path, **options)
        except ValueError as error:
            raise _misfit(checkpoint, model, weights) or error from None

    ours = {"load_config": read_config, "_load_safetensors": read, "load_model_weights": install_checked}
    with _lock:
        theirs = {name: getattr(utils, name) for name in ours}
        try:
            for name, function in ours.items():
                setattr(utils, name, function)
            yield
        finally:
            for name, function in theirs.items():
                setattr(utils, name, function)


def normalised_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return `config` as transformers 4 wrote it: Qwen's with the text part at the top, the rotation in its old keys.

    The rest reads either form.
    """
    text = config.get("text_config")
    if config["model_type"] in {"qwen2_vl", "qwen2_5_vl"} and isinstance(text, dict):
        nested = {key: value for key, value in text.items() if key not in {"model_type", "architectures"}}
        config = {**nested, **{key: value for key, value in config.items() if key != "text_config"}}
    rotation = config.get("rope_parameters")
    if isinstance(rotation, dict):
        scaling = {key: value for key, value in rotation.items() if key != "rope_theta"}
        scaling.setdefault("type", scaling.get("rope_type", "default"))
        config = {"rope_theta": rotation.get("rope_theta", 1e6), "rope_scaling": scaling, **config}
    return dict(config)


def _normalised_name(name: str) -> str:
    """Return a tensor's name as the published checkpoints have it; transformers 5 can nest both parts in `model`."""
    for nested, plain in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(nested):
            return plain + name.removeprefix(nested)
    return name


def _without_tied_head(model: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Return `weights` without the head of a network that has none of its own: it is that of the embeddings again."""
    known = _parameter_names(model)
    return {name: array for name, array in weights.items() if "lm_head." not in name or name in known}


def _parameter_names(model: Any) -> set[str]:
    from mlx.utils import tree_flatten

    parameters: Any = tree_flatten(model.parameters())
    return {name for name, _ in parameters}


def _misfit(checkpoint: Checkpoint, model: Any, weights: dict[str, Any]) -> LibMlxError | None:
    """Return the error of weights that lack tensors or have unknown ones; None if neither is so."""
    known = _parameter_names(model)
    for names, what in ((known - weights.keys(), "lacks"), (weights.keys() - known, "has unknown tensors:")):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            return CorruptModel(
                f"The checkpoint at {checkpoint.path} {what} {shown}{more}.",
                hint="Its config.json and weights do not fit together; fetch or convert the model again.",
            )
    return None


def load_processor(checkpoint: Checkpoint) -> Any:
    """Return mlx-vlm's processor of `checkpoint`; takes seconds. Any thread.

    Raises:
        Exception: whatever mlx-vlm and transformers raise for files that they cannot read.
    """
    from mlx_vlm import utils

    with importing, warnings.catch_warnings():  # of what a checkpoint's author has chosen
        warnings.simplefilter("ignore")
        # Without these answers the checkpoint's own code would be run, and the network asked for missing files.
        return utils.load_processor(
            checkpoint.path, add_detokenizer=False, trust_remote_code=checkpoint.trusted, local_files_only=True
        )


def resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Return `samples` at another rate, as mlx-vlm does it: by mlx-audio's filter."""
    with _unchanged_environment():
        from mlx_audio.resample import resample_audio_array

    return np.asarray(resample_audio_array(samples, rate, wanted), np.float32)
