"""What a vision model's frozen encoders make of the images of examples: computed once, while there is room for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_mlx import memory
from lib_mlx.engine.media_encoder import FeatureCache
from lib_mlx.engine.worker import get_worker
from lib_mlx.errors import InvalidArgument
from lib_mlx.training.examples import read_again

if TYPE_CHECKING:
    from collections.abc import Sequence

    import mlx.core as mx

    from lib_mlx.models.media_prompt import Medium
    from lib_mlx.models.media_reader import MediaReader
    from lib_mlx.models.vision_network import MediaPlan, VisionNetwork
    from lib_mlx.training.examples import Example

_SHARE = 8  # of the memory that is free, images get one part in so many


class Features:
    """The features of examples' images. Any thread but the engine's; `close` on that.

    Pixels are read and made into numbers here; the encoders run on the engine thread, where other models go on between
    two of their layers.

    Args:
        network: encodes.
        reader: reads images.
        max_bytes: bound on what is kept; None: an eighth of the memory that is free.
    """

    def __init__(self, network: VisionNetwork, reader: MediaReader, max_bytes: int | None) -> None:
        self._held = [network]
        self._reader = reader
        self._kept = FeatureCache(memory.available_bytes() // _SHARE if max_bytes is None else max_bytes)

    @property
    def encoded(self) -> int:
        """How many images have been encoded; again counts again."""
        return self._kept.misses

    @property
    def nbytes(self) -> int:
        """What is kept takes so much memory."""
        return self._kept.nbytes

    def plans(self, batch: Sequence[Example]) -> list[MediaPlan | None]:
        """Return what the images of a batch are to the network; None for an example without any.

        Raises:
            InvalidArgument: an image is not there any more, or is another one.
            UnsupportedFeature: the network wants more of images than features.
        """
        plans = get_worker().run(self._known, batch)
        fresh: dict[str, mx.array] = {}
        for example, plan in zip(batch, plans, strict=True):
            if plan is not None:
                missing = plan.missing(0)
                if not fresh.keys() >= set(missing):
                    fresh |= self._encoded(example, set(missing) - fresh.keys())
                plan.features |= {digest: fresh[digest] for digest in missing}
        return plans

    def close(self) -> None:
        """Let go of everything. Engine thread."""
        self._held.clear()
        self._kept.clear()

    def _known(self, batch: Sequence[Example]) -> list[MediaPlan | None]:
        """Return the plans with what is kept. Engine thread."""
        plans = [self._held[0].plan(example.media) if example.media else None for example in batch]
        wanted = dict.fromkeys(digest for plan in plans if plan for digest in plan.missing(0))
        found = {digest: features for digest in wanted if (features := self._kept.take(digest)) is not None}
        for plan in filter(None, plans):
            plan.features |= {digest: found[digest] for digest in plan.missing(0) if digest in found}
        return plans

    def _encoded(self, example: Example, wanted: set[str]) -> dict[str, mx.array]:
        """Return the features of images of an example."""
        if example.line is None:
            raise RuntimeError("an example without a line has images")
        media = {medium.digest: medium for medium in read_again(example.line, self._reader)}
        if not wanted <= media.keys():
            raise InvalidArgument(
                f"{example.line}: an image has changed since the training began.",
                hint="Leave files as they are while they are learnt from.",
                param="data_path",
            )
        return {digest: self._encode(media[digest]) for digest in sorted(wanted)}

    def _encode(self, medium: Medium) -> mx.array:
        inputs = self._reader.inputs(medium)
        worker = get_worker()

        def encode() -> mx.array:
            features = self._held[0].encode(medium.kind, medium.shape.tokens, inputs, worker.breathe)
            self._kept.store(medium.digest, features)
            return features

        return worker.run(encode)
