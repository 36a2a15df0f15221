"""What an engine's model has beside text, if it is a GUI-Actor: how its requests are prepared, and their lane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib_mlx.engine.grounding import GroundingPreparer
from lib_mlx.engine.grounding_lane import GroundingLane
from lib_mlx.engine.worker import get_worker
from lib_mlx.grounding.interface import Interface, is_pointer_model

if TYPE_CHECKING:
    from lib_mlx.engine.media_encoder import MediaEncoder
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.loader import LoadedTokenizer, Weights
    from lib_mlx.models.media_reader import MediaReader


@dataclass(frozen=True)
class Pointing:
    """See the module."""

    preparer: GroundingPreparer
    lane: GroundingLane


def open_pointing(
    checkpoint: Checkpoint,
    tokenizer: LoadedTokenizer,
    weights: Weights,
    media: MediaReader | None,
    encoder: MediaEncoder | None,
) -> Pointing | None:
    """Return what a GUI-Actor has; None for another model. Not for the engine thread.

    Raises:
        UnsupportedModel, CorruptModel: it is one that does not work.
    """
    vision = weights.vision
    if vision is None or media is None or encoder is None:
        return None
    if not is_pointer_model(checkpoint.config, vision.apart):
        return None
    from lib_mlx.grounding.actor import GuiActor
    from lib_mlx.grounding.backbone import Backbone
    from lib_mlx.grounding.pointer_head import load_head

    interface = Interface.of(checkpoint.config, tokenizer)
    head = get_worker().run(load_head, vision.apart, checkpoint.path)
    backend = tokenizer.wrapper.backend_tokenizer

    def decode(tokens: list[int]) -> str:
        with tokenizer.lock:
            return str(backend.decode(tokens, skip_special_tokens=False))

    actor = GuiActor(Backbone(vision), head, interface, decode)
    return Pointing(GroundingPreparer(checkpoint, tokenizer, interface, media), GroundingLane(actor, encoder))
