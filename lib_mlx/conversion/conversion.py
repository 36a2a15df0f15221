"""One model into another: its types, its format."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from lib_mlx.engine import heap
from lib_mlx.engine.imports import import_on_worker
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidArgument, LoadCancelled, UnsupportedFeature
from lib_mlx.grounding.interface import is_pointer_model
from lib_mlx.models import store
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.disk import check_new

if TYPE_CHECKING:
    from collections.abc import Callable

    from lib_mlx.conversion.config import ConvertConfig
    from lib_mlx.models.checkpoint import Checkpoint

_PIECE = 512


@dataclass(frozen=True)
class Converted:
    """What a conversion made."""

    path: Path
    bytes_before: int
    bytes_after: int
    """Of the weights' files."""


def convert(
    config: ConvertConfig,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Converted:
    """Write a model in another form. Blocks; the engine thread works, and serves other models between parts.

    What was written when it was interrupted is gone on with, if it is asked for in the same way. Other directories are
    left as they are; the new one appears whole or not at all.

    Args:
        config: what to do.
        progress: told the stage (`convert`, `learn` or `write`), bytes done and in total.
        cancelled: asked before each part.

    Raises:
        LibMlxError: the model is not there, cannot be read or not be quantised so; or there is no room for it.
        LoadCancelled: `cancelled` said so.
    """
    source = store.resolve(config.model_path, progress=partial(progress, "convert"), cancelled=cancelled)
    checkpoint = inspect(source, trust_remote_code=config.trust_remote_code)
    target = Path(config.output_path).expanduser().absolute()
    check_new(target)
    pieces = _pieces(config, checkpoint) if config.text_path else []
    worker = get_worker()
    import_on_worker("lib_mlx.conversion.quantization")
    try:
        if checkpoint.has_towers and is_pointer_model(checkpoint.config):
            _quantize_actor(config, source, target, progress, cancelled)
        else:
            worker.run(_convert, config, checkpoint, target, pieces, progress, cancelled)
    finally:
        worker.run(heap.release)
    return Converted(target, _weight_bytes(source), _weight_bytes(target))


def _quantize_actor(
    config: ConvertConfig,
    source: Path,
    target: Path,
    progress: Callable[[str, int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Quantise a GUI-Actor's language model alone; raises UnsupportedFeature for all that is more than that."""
    told = config.model_dump(exclude_defaults=True, exclude={"model_path", "output_path", "trust_remote_code"})
    if told not in ({"bits": 4}, {"bits": 8}):
        raise UnsupportedFeature(
            "Of a GUI-Actor the language model can be quantised, to 4 or 8 bits, and nothing else.",
            hint="Give bits alone.",
            param=next(iter(set(told) - {"bits"}), "bits"),
        )
    import_on_worker("lib_mlx.grounding.quantization")
    from lib_mlx.grounding.quantization import quantize_checkpoint

    written, between = partial(progress, "write"), partial(_breathe, cancelled)
    get_worker().run(quantize_checkpoint, source, target, told["bits"], written, between)


def _breathe(cancelled: Callable[[], bool]) -> None:
    get_worker().breathe()
    if cancelled():
        raise LoadCancelled("The conversion was cancelled.", hint="Start it again; parts of a text model are kept.")


def _convert(
    config: ConvertConfig,
    checkpoint: Checkpoint,
    target: Path,
    pieces: list[list[int]],
    progress: Callable[[str, int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    from lib_mlx.conversion import quantization
    from lib_mlx.engine.device import set_up
    from lib_mlx.models.loader import load_text_network
    from lib_mlx.models.upstream_tuner import dequantize_model
    from lib_mlx.models.writing import write_model

    set_up()

    def load() -> Any:
        network = load_text_network(checkpoint)
        if config.dequantize or config.quantizes:  # what is quantised already is quantised anew
            dequantize_model(network)
        return network

    network, written = load(), quantization.dequantized(checkpoint.config) if config.dequantize else checkpoint.config
    if config.dtype is not None:
        written = quantization.cast_weights(network, config.dtype, written)
    if config.learned is not None:
        from lib_mlx.conversion.learning import learn

        progress("learn", 0, 0)
        written = learn(network, load, written, config, pieces)
    elif config.quantizes:
        written = quantization.quantize(network, written, config)
    write_model(
        network,
        written,
        checkpoint.path,
        target,
        key=_key(config, checkpoint.path),
        progress=partial(progress, "write"),
        between=partial(_breathe, cancelled),
    )


def _key(config: ConvertConfig, source: Path) -> str:
    """Return what the result depends on."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(source.glob("*.safetensors"))]
    told = config.model_dump_json(exclude={"output_path"})
    return hashlib.sha256(f"{told}{source}{files}".encode()).hexdigest()


def _pieces(config: ConvertConfig, checkpoint: Checkpoint) -> list[list[int]]:
    """Return pieces of the text, in tokens, all of one length."""
    from lib_mlx.models.loader import load_tokenizer

    path = Path(config.text_path or "").expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(
            f"{path} cannot be read: {error}.", hint="Name a text in UTF-8.", param="text_path"
        ) from None
    tokens = load_tokenizer(checkpoint).wrapper.backend_tokenizer.encode(text).ids
    length = min(_PIECE, max(2, len(tokens) // config.samples))
    pieces = [list(tokens[at : at + length]) for at in range(0, len(tokens) - length + 1, length)]
    Random(config.seed).shuffle(pieces)  # noqa: S311 - not a secret
    return pieces[: config.samples]


def _weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
