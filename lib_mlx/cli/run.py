"""`lib-mlx run`: one answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lib_mlx.cli.completion import model_names

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A directory, a .gguf file or a name of `lib-mlx list`.", autocompletion=model_names
    ),
]
System = Annotated[str | None, typer.Option("--system", "-s", help="A system message to begin with.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-n", min=1, help="The most tokens of an answer.")]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", min=0.0, help="0 is greedy.")]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", "-i", help="A picture that the text is about; may be given several times."),
]
Sounds = Annotated[
    list[Path] | None,
    typer.Option("--audio", "-a", help="A sound that the text is about; may be given several times."),
]
Adapter = Annotated[Path | None, typer.Option(help="The folder of an adapter, as `lib-mlx train` writes it.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]


def run(
    model: ModelName,
    prompt: Annotated[list[str] | None, typer.Argument(help="What to ask; stdin if it is left out.")] = None,
    *,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    adapter: Adapter = None,
    image: Images = None,
    audio: Sounds = None,
) -> None:
    """Answer one prompt: the text on stdout as it comes, then tokens and speed on stderr."""
    from lib_mlx.cli.generate import answer, figures, load, question
    from lib_mlx.generation import Message, SamplingParams

    text = " ".join(prompt) if prompt else sys.stdin.read().strip()
    if not text:
        raise typer.BadParameter("There is nothing to ask.")
    messages = [*([Message("system", system)] if system else []), question(text, image or (), audio or ())]
    with load(model, adapter) as loaded:
        _, finished = answer(loaded, messages, SamplingParams(temperature=temperature, seed=seed), max_tokens)
    if finished is None:
        raise typer.Exit(130)
    typer.echo(figures(finished), err=True)
