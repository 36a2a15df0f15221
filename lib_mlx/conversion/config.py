"""What a conversion is told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lib_mlx.config import Config

Mode = Literal["affine", "mxfp4", "nvfp4", "mxfp8"]
Recipe = Literal["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]
FloatType = Literal["float16", "bfloat16", "float32"]
Learned = Literal["gptq", "awq", "dwq"]

SCHEMES: dict[Mode, tuple[int, int]] = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
"""Group size and bits of each mode, as MLX defines them."""


class ConvertConfig(Config):
    """How to convert a model (`lib-mlx convert`)."""

    model_path: Annotated[str, Field(min_length=1)]
    """A model directory, a `.gguf` file, or the name of a model in the store or the Hugging Face cache."""
    output_path: Annotated[str, Field(min_length=1)]
    """A directory that does not exist yet."""
    bits: Literal[2, 3, 4, 5, 6, 8] | None = None
    """Quantise the weights to so many bits; the mode's own if not given."""
    group_size: Literal[32, 64, 128] | None = None
    """So many weights share a scale; the mode's own if not given."""
    mode: Mode | None = None
    """How: "affine", or a floating-point format of blocks (OCP Microscaling; NVIDIA's NVFP4)."""
    recipe: Recipe | None = None
    """Fewer bits for most weights and more for those that matter most."""
    learned: Learned | None = None
    """Fit the quantised weights to `text`: "gptq" (arXiv:2210.17323), "awq" (arXiv:2306.00978) or "dwq" (distilled)."""
    text_path: Annotated[str, Field(min_length=1)] | None = None
    """A text to fit to, such as the model will see."""
    samples: Annotated[int, Field(ge=1)] = 32
    """How many pieces of the text, of 512 tokens each at most."""
    dtype: FloatType | None = None
    """The type of weights that are not quantised; as it is if not given."""
    dequantize: bool = False
    """Make quantised weights floating-point again."""
    seed: int = 0
    """Of which pieces of the text are taken."""
    trust_remote_code: bool = False
    """As in `LoadConfig`."""

    @property
    def quantizes(self) -> bool:
        """Whether weights are to be quantised."""
        return any(value is not None for value in (self.bits, self.group_size, self.mode, self.recipe, self.learned))

    @model_validator(mode="after")
    def _agree(self) -> ConvertConfig:
        if self.dequantize and self.quantizes:
            raise ValueError("'dequantize' and quantising contradict each other")
        if self.recipe and (self.bits or self.learned or self.mode not in {None, "affine"}):
            raise ValueError("'recipe' chooses the bits itself, in the mode affine")
        if self.mode not in {None, "affine"} and (self.bits or self.group_size or self.learned):
            raise ValueError(f"'{self.mode}' has bits and a group size of its own, and cannot be learned")
        if bool(self.learned) != bool(self.text_path):
            raise ValueError("'learned' needs 'text_path', and is the only one that does")
        if self.learned == "gptq" and self.bits not in {None, 2, 4, 8}:
            raise ValueError("'gptq' knows 2, 4 and 8 bits")
        return self
