"""What a training is told; kept beside its results, so that it can be resumed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lib_mlx.config import Config

Method = Literal["lora", "dora", "full"]
OptimizerName = Literal["adam", "adamw", "sgd", "adafactor", "muon"]
ScheduleName = Literal["constant", "linear", "cosine"]


class TrainConfig(Config):
    """How to fine-tune a model (`lib-mlx train`, `lib_mlx.training.train`)."""

    model_path: Annotated[str, Field(min_length=1)]
    """A model directory, a `.gguf` file, or the name of a model in the store or the Hugging Face cache."""
    data_path: Annotated[str, Field(min_length=1)]
    """A `.jsonl` file, or a directory with `train.jsonl` and perhaps `valid.jsonl`."""
    output_path: Annotated[str, Field(min_length=1)]
    """A directory for the adapter, the checkpoint and the loss."""
    method: Method = "lora"
    """"lora" (arXiv:2106.09685), "dora" (arXiv:2402.09353), or "full": the weights themselves."""
    layers: Annotated[int, Field(ge=-1)] = -1
    """How many of the last layers are trained, 1 at least; -1: all."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Of the adapter's matrices."""
    scale: Annotated[float, Field(gt=0)] = 2.0
    """The adapter's outputs are multiplied with it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of an adapter's inputs that is left out at random."""
    steps: Annotated[int, Field(ge=1)] = 600
    """Updates of the weights."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Examples at once."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Batches of an update."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Of the first step after the warm-up."""
    schedule: ScheduleName = "constant"
    """How the learning rate goes on: "linear" and "cosine" end at 0: no steps can be added later."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps in which it rises from 0."""
    optimizer: OptimizerName = "adamw"
    """As `mlx.optimizers` has it."""
    max_tokens: Annotated[int, Field(ge=2)] = 2048
    """Longer examples are cut."""
    train_on_prompts: bool = False
    """Learn the whole text of conversations, and not only the assistant's part."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of the examples that is kept for validation where there is no `valid.jsonl`."""
    validate_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations."""
    save_every: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many validations without a better one."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    """Of the order of examples, new weights and dropout."""
    min_pixels: Annotated[int, Field(ge=1)] | None = None
    """The least pixels of an image as the model sees it; None: as the model has it."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """The most, likewise."""
    image_cache_bytes: Annotated[int, Field(ge=0)] | None = None
    """What encoded images may take in memory; those beyond are encoded again when their turn comes. None: an eighth of
    what is free."""
    checkpoint_layers: bool = False
    """Compute what is between layers again instead of keeping it: slower, with less memory."""
    trust_remote_code: bool = False
    """As in `LoadConfig`."""

    @field_validator("layers")
    @classmethod
    def _some(cls, layers: int) -> int:
        if layers == 0:  # mlx-lm takes it for all
            raise ValueError("no layer would be trained; -1 is all")
        return layers
