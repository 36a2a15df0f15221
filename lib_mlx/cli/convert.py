"""`lib-mlx convert`, `quantize` and `fuse`: models from models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lib_mlx.cli.interrupt import stopped_by_ctrl_c
from lib_mlx.cli.run import ModelName  # noqa: TC001

Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="A directory that does not exist yet.")]
Dtype = Annotated[str | None, typer.Option(help="float16, bfloat16 or float32, of what is not quantised.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the new model's path.")]


def convert(
    model: ModelName,
    output: Output,
    dtype: Dtype = None,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Make quantised weights floating-point.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a Hugging Face or GGUF model in MLX's format, or with weights of another type.

    Ctrl-C leaves what the same command goes on with.
    """
    _convert(quiet, model_path=model, output_path=str(output), dtype=dtype, dequantize=dequantize)


def quantize(
    model: ModelName,
    output: Output,
    *,
    bits: Annotated[int | None, typer.Option(help="2, 3, 4, 5, 6 or 8; 4 if nothing else is said.")] = None,
    group_size: Annotated[int | None, typer.Option(help="32, 64 or 128 weights share a scale.")] = None,
    mode: Annotated[str | None, typer.Option(help="affine, mxfp4, nvfp4 or mxfp8.")] = None,
    recipe: Annotated[str | None, typer.Option(help="mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6.")] = None,
    learned: Annotated[str | None, typer.Option(help="gptq, awq or dwq: fit the weights to --text.")] = None,
    text: Annotated[Path | None, typer.Option(help="A text such as the model will see.")] = None,
    samples: Annotated[int | None, typer.Option(help="How many pieces of it, of 512 tokens at most; 32.")] = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Write a model with fewer bits a weight. `lib-mlx eval kl` tells what that costs.

    Ctrl-C leaves what the same command goes on with.
    """
    chosen: dict[str, Any] = {
        "bits": bits,
        "group_size": group_size,
        "mode": mode,
        "recipe": recipe,
        "learned": learned,
    }
    if all(value is None for value in chosen.values()):
        chosen["bits"] = 4
    told = {**chosen, "text_path": str(text) if text else None, "samples": samples, "dtype": dtype}
    _convert(quiet, model_path=model, output_path=str(output), **told)


def fuse(
    model: ModelName,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Its folder, as `lib-mlx train` writes it.")],
    output: Output,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Leave no weight quantised.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a model with an adapter in its weights. Ctrl-C leaves nothing."""
    from lib_mlx.cli.progress import reporter
    from lib_mlx.training.fuse import fuse as run

    stopped = stopped_by_ctrl_c()
    with reporter(quiet) as report:
        path = run(
            model,
            adapter,
            output,
            dequantize=dequantize,
            progress=lambda done, total: report("write", done, total) if report else None,
            cancelled=stopped.is_set,
        )
    typer.echo(path)


def _convert(quiet: bool, **told: Any) -> None:
    from lib_mlx.cli.progress import reporter
    from lib_mlx.config import parse_config
    from lib_mlx.conversion.config import ConvertConfig
    from lib_mlx.conversion.conversion import convert as run

    config = parse_config(ConvertConfig, {key: value for key, value in told.items() if value is not None})
    stopped = stopped_by_ctrl_c()
    with reporter(quiet) as report:
        made = run(config, report or (lambda _stage, _done, _total: None), stopped.is_set)
    if not quiet:
        before, after = made.bytes_before / 1e6, made.bytes_after / 1e6
        typer.echo(f"{before:.1f} MB became {after:.1f} MB", err=True)
    typer.echo(made.path)
