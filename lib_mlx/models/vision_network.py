"""mlx-vlm's models as mlx-lm's `BatchGenerator` calls its own: tokens and caches in, logits out.

A prompt with images has, in place of each image token, a number that stands for the pixels behind it (see
`models.media_prompt`): negative, so that no token is mistaken for it, and so a key of the prefix cache. What the
network needs beside the tokens (the features, the places that multimodal rotation gives to tokens) rides along as one
more cache object, `RowState`, which the generator merges, splits and filters with the caches of keys and values.
Rows with and without images are processed and decoded together.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from lib_mlx.errors import UnsupportedFeature
from lib_mlx.models import upstream_vlm
from lib_mlx.models.upstream import KVCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from lib_mlx.generation import MediaKind
    from lib_mlx.models.checkpoint import Checkpoint
    from lib_mlx.models.kv_cache import KVCache as Caches
    from lib_mlx.models.media_prompt import PromptMedia, Span

_UNDERSTOOD = frozenset({
    "inputs_embeds", "position_ids", "rope_deltas", "visual_pos_masks", "deepstack_visual_embeds", "per_layer_inputs"
})  # fmt: skip
"""What `VisionNetwork` takes of an upstream model's embeddings."""


_IMAGE_TOKENS = ("image_token_id", "image_token_index")
_FILMS = frozenset({"qwen2_vl", "qwen2_5_vl"})
"""Whose videos are one run of tokens each, and two frames a step of them."""


@dataclass(eq=False)
class MediaPlan:
    """What a prompt's images are to the network. Engine thread only."""

    spans: tuple[Span, ...]
    positions: NDArray[np.int32] | None = None
    """Of shape (3, prompt): the places of the prompt's tokens, if the model rotates by time, height and width."""
    delta: int = 0
    """By how much the place of a token behind the prompt differs from its number."""
    features: dict[str, mx.array] = field(default_factory=dict)
    """By digest, of shape (image tokens, hidden): those that are known.

    Of networks that add features to the first layers' outputs too, those follow: (image tokens, hidden * (1 + layers)).
    """

    def missing(self, known: int) -> list[str]:
        """Return the digests of images whose features the tokens from `known` on need and that are not there."""
        wanted = dict.fromkeys(span.medium for span in self.spans if span.stop > known)
        return [digest for digest in wanted if digest not in self.features]

    def within(self, begin: int, length: int) -> list[tuple[int, mx.array]]:
        """Return the features of the tokens from `begin` on, and where among those `length` they stand."""
        pieces = []
        for span in self.spans:
            start, stop = max(span.start, begin), min(span.stop, begin + length)
            if start < stop:
                first = span.first + start - span.start
                pieces.append((start - begin, self.features[span.medium][first : first + stop - start]))
        return pieces

    def reaches(self, begin: int) -> bool:
        """Whether tokens from `begin` on may be of images or stand among them."""
        return bool(self.spans) and begin < self.spans[-1].stop


@dataclass(slots=True)
class _Row:
    offset: int
    plan: MediaPlan | None


class RowState:
    """How far each row has come and what its images are; one more object in a list of caches.

    Counts as the caches do, but on the host: nothing has to be computed to know what a step needs.
    """

    def __init__(self, rows: list[_Row]) -> None:
        self.rows = rows
        self._padding: Sequence[int] = ()

    @classmethod
    def new(cls, plan: MediaPlan | None = None, offset: int = 0) -> Self:
        """Return the state of one row of which `offset` tokens have been processed."""
        return cls([_Row(offset, plan)])

    @classmethod
    def merge(cls, states: Iterable[RowState]) -> Self:
        """Return the state of all rows together."""
        return cls([row for state in states for row in state.rows])

    @property
    def state(self) -> list[mx.array]:
        """Nothing has to be evaluated."""
        return []

    @property
    def nbytes(self) -> int:
        """Features are counted where they are kept."""
        return 0

    def __deepcopy__(self, _memo: dict[int, Any]) -> RowState:
        return type(self)([_Row(row.offset, row.plan) for row in self.rows])

    def extend(self, other: RowState) -> None:
        """Take in the rows of `other`."""
        self.rows = [*self.rows, *other.rows]

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows of these numbers."""
        self.rows = [self.rows[index] for index in keep]

    def extract(self, index: int) -> RowState:
        """Return the state of one row."""
        row = self.rows[index]
        return self.new(row.plan, row.offset)

    def prepare(self, *, right_padding: Sequence[int] = (), **_lengths: Any) -> None:
        """Note that the tokens to come are padded."""
        self._padding = right_padding

    def finalize(self) -> None:
        """Count out the padding."""
        for row, padding in zip(self.rows, self._padding, strict=False):
            row.offset -= padding
        self._padding = ()

    def advance(self, tokens: int) -> None:
        """Note that so many more tokens of each row have been processed."""
        for row in self.rows:
            row.offset += tokens

    def positions(self, tokens: int) -> mx.array:
        """Return the places of the next tokens of each row, of shape (3, rows, tokens)."""
        places = np.empty((3, len(self.rows), tokens), np.int32)
        for index, row in enumerate(self.rows):
            plan = row.plan
            places[:, index] = np.arange(row.offset, row.offset + tokens) + (plan.delta if plan else 0)
            if plan is not None and plan.positions is not None and row.offset < plan.positions.shape[1]:
                own = plan.positions[:, row.offset : row.offset + tokens]
                places[:, index, : own.shape[1]] = own
        return mx.array(places)

    def reaches_images(self) -> bool:
        """Whether the next tokens may be of images."""
        return any(row.plan is not None and row.plan.reaches(row.offset) for row in self.rows)


class VisionNetwork:
    """One model of mlx-vlm. Engine thread only.

    Args:
        model: as it was loaded.
        placeholders: the tokens that stand for a piece of an image or a sound, by kind.
        apart: tensors that are no part of it, by name.
    """

    def __init__(self, model: Any, placeholders: Mapping[MediaKind, int], apart: Mapping[str, mx.array]) -> None:
        self.whole = model
        self.language = model.language_model
        self.placeholders = placeholders
        self.apart = dict(apart)
        self.rotates = callable(getattr(self.language, "get_rope_index", None))
        """Whether tokens have places in time, height and width."""

    @property
    def layers(self) -> Any:
        """Of the language model."""
        return self.language.layers

    @property
    def model(self) -> Any:
        """What gives the hidden states of text."""
        return getattr(self.language, "model", None)

    def make_cache(self) -> Caches:
        """Return an empty cache for one row."""
        own = getattr(self.language, "make_cache", None)
        return list(own()) if callable(own) else [KVCache() for _ in self.layers]

    def towers(self) -> list[mx.array]:
        """Return the weights of all but the language model; they are in memory once they have been evaluated."""
        arrays: Any = tree_flatten([part.parameters() for part in self._parts()])  # type: ignore[no-untyped-call]
        return [array for _, array in arrays]

    def widen_towers(self) -> None:
        """Have the encoders compute in float32: on the CPU half precision is many times slower. Nothing is read yet."""
        for part in self._parts():
            part.set_dtype(mx.float32)

    def _parts(self) -> list[Module]:
        children: Any = tree_flatten(self.whole.children(), is_leaf=Module.is_module)
        return [part for _, part in children if part is not self.language]

    def __call__(self, tokens: mx.array, cache: Caches) -> mx.array:
        """Return the logits, of shape (rows, tokens, vocabulary)."""
        state = cache[-1] if isinstance(cache[-1], RowState) else None
        if state is None:  # a row of text alone, from its beginning
            return self._logits(tokens, cache, self._places(RowState.new(None, _offset(cache)), tokens))
        options = self._places(state, tokens)
        if state.reaches_images():
            tokens, embedded = self._embed(tokens, state)
            options |= embedded
        logits = self._logits(tokens, cache[:-1], options)
        state.advance(tokens.shape[1])
        return logits

    def score(self, tokens: mx.array, plans: Sequence[MediaPlan | None]) -> mx.array:
        """Return the logits of whole rows, from which a gradient can be taken: nothing is kept in caches.

        Args:
            tokens: of shape (rows, tokens), negative where images are, padded on the right.
            plans: of each row, with all features.
        """
        state = RowState([_Row(0, plan) for plan in plans])
        options = self._places(state, tokens)
        if state.reaches_images():
            tokens, embedded = self._embed(tokens, state)
            options |= embedded
        return cast("mx.array", self.language(tokens, cache=None, **options).logits)

    def _logits(self, tokens: mx.array, cache: Caches, options: dict[str, Any]) -> mx.array:
        return cast("mx.array", self.language(tokens, cache=cache, **options).logits)

    def _places(self, state: RowState, tokens: mx.array) -> dict[str, Any]:
        # Always told: left alone, mlx-vlm takes those of the last prompt with images.
        return {"position_ids": state.positions(tokens.shape[1])} if self.rotates else {}

    def _embed(self, tokens: mx.array, state: RowState) -> tuple[mx.array, dict[str, Any]]:
        """Return the tokens as the tokenizer knows them, and what the network is given in place of them."""
        images = tokens < 0
        # Whichever it is: features come in its place, and what else is made of tokens is the same for all of them.
        tokens = mx.where(images, mx.array(next(iter(self.placeholders.values())), tokens.dtype), tokens)
        embeddings = self.whole.get_input_embeddings(tokens, None)
        texts = embeddings.inputs_embeds
        length = tokens.shape[1]
        width = texts.shape[-1]
        found = [row.plan.within(row.offset, length) if row.plan else [] for row in state.rows]
        rows = [_with_features(texts[index], pieces) for index, pieces in enumerate(found)]
        options: dict[str, Any] = {"inputs_embeds": mx.stack(rows)}
        if embeddings.per_layer_inputs is not None:
            options["per_layer_inputs"] = embeddings.per_layer_inputs
        features = [piece for pieces in found for _, piece in pieces]
        if features and features[0].shape[-1] > width:
            options["visual_pos_masks"] = images
            together = mx.concatenate(features)
            options["deepstack_visual_embeds"] = mx.split(together, together.shape[-1] // width, axis=-1)[1:]
        return tokens, options

    def encode(
        self,
        kind: MediaKind,
        tokens: Sequence[int],
        inputs: Mapping[str, Any],
        between: Callable[[], None] = lambda: None,
    ) -> mx.array:
        """Return the features of one image or sound, of shape (its placeholders, hidden).

        Args:
            kind: what it is.
            tokens: what stands for it in a prompt.
            inputs: what the processor made of it.
            between: called between two layers of the encoder; what it raises ends the work.

        Raises:
            UnsupportedFeature: the network wants more of an image than features.
        """
        if kind == "image" and getattr(self.language.config, "use_bidirectional_attention", None) == "vision":
            raise _unreadable("attention in both directions")
        ids = mx.array([list(tokens)])
        arrays = {"mask": mx.ones_like(ids), **{name: mx.array(value) for name, value in inputs.items()}}
        try:
            with paced(self._layers_of_towers(), between):
                embeddings = self.whole.get_input_embeddings(ids, **arrays)
        except ValueError as error:  # upstream's word for pixels and tokens that do not fit together
            raise UnsupportedFeature(
                f"This checkpoint's processor and network do not fit together: {error}.", hint="Use another model."
            ) from error
        extras = {name for name, value in embeddings.to_dict().items() if value is not None} - _UNDERSTOOD
        if extras:
            raise _unreadable(min(extras))
        places = [index for index, token in enumerate(tokens) if token == self.placeholders[kind]]
        deep = embeddings.deepstack_visual_embeds
        own = embeddings.inputs_embeds[0, mx.array(places)]
        features = own if deep is None else mx.concatenate([own, *deep], axis=-1)
        mx.eval(features)
        return cast("mx.array", features)

    def _layers_of_towers(self) -> list[Module]:
        modules: Any = [module for part in self._parts() for module in part.modules()]  # type: ignore[no-untyped-call]
        lists = [value for module in modules for value in module.children().values() if isinstance(value, list)]
        return [layer for layers in lists for layer in layers if isinstance(layer, Module)]

    def plan(self, media: PromptMedia) -> MediaPlan:
        """Return the plan of a prompt with images, of which none is encoded yet."""
        return MediaPlan(media.spans, *self.places(media.tokens, media.grids, media.video_grids))

    def places(
        self, tokens: Sequence[int], grids: Sequence[Sequence[int]], video_grids: Sequence[Sequence[int]] = ()
    ) -> tuple[NDArray[np.int32] | None, int]:
        """Return `MediaPlan.positions` and `delta` of a prompt; grids are (time, height, width)."""
        if not self.rotates or not (grids or video_grids):
            return None, 0
        shapes, clips = (mx.array([list(grid) for grid in some]) if some else None for some in (grids, video_grids))
        positions, delta = self.language.get_rope_index(mx.array([list(tokens)]), shapes, clips, None)
        return np.array(positions[:, 0], np.int32), int(delta.item())


@contextlib.contextmanager
def paced(layers: Iterable[Module], between: Callable[[], None]) -> Iterator[None]:
    """Have each of `layers` evaluate its output and call `between`, so that one evaluation is one layer's."""
    kinds: dict[type[Module], type[Module]] = {}
    changed = [(layer, type(layer)) for layer in layers]
    try:
        for layer, kind in changed:
            layer.__class__ = kinds.setdefault(kind, _paced_kind(kind, between))
        yield
    finally:
        for layer, kind in changed:
            layer.__class__ = kind


def _paced_kind(kind: Any, between: Callable[[], None]) -> type[Module]:
    def call(self: Module, *args: Any, **options: Any) -> Any:
        output = kind.__call__(self, *args, **options)
        mx.eval(output)
        between()
        return output

    return type(kind.__name__, (kind,), {"__call__": call})


def load_network(checkpoint: Checkpoint) -> VisionNetwork:
    """Return the network of a checkpoint that has encoders, nothing evaluated. Engine thread only.

    Raises:
        CorruptModel, UnsupportedModel, Exception: see `upstream_vlm`.
    """
    upstream_vlm.import_mlx_vlm(checkpoint)
    model, apart = upstream_vlm.load_model(checkpoint)
    return VisionNetwork(model, _placeholders(checkpoint, model), apart)


def image_placeholder(checkpoint: Checkpoint) -> int | None:
    """Return the token that stands for a piece of an image; None if the checkpoint names none."""
    return next(filter(_is_token, map(checkpoint.config.get, _IMAGE_TOKENS)), None)


def _placeholders(checkpoint: Checkpoint, model: Any) -> dict[MediaKind, int]:
    """Return the tokens that stand for a piece of what `model` has encoders of; none if the checkpoint names none."""
    names: dict[MediaKind, tuple[str, ...]] = {"image": _IMAGE_TOKENS}
    if isinstance(getattr(model, "audio_tower", None), Module):
        names["audio"] = ("audio_token_id",)
    if checkpoint.model_type in _FILMS:
        names["video"] = ("video_token_id",)
    values = {kind: [checkpoint.config.get(name) for name in own] for kind, own in names.items()}
    return {kind: one for kind, ones in values.items() if (one := next(filter(_is_token, ones), None)) is not None}


def _is_token(value: Any) -> TypeGuard[int]:
    return isinstance(value, int)


def _unreadable(need: str) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"Images of this architecture cannot be read: it needs {need}.", hint="Use another model."
    )


def _offset(cache: Caches) -> int:
    return int(cache[0].offset)


def _with_features(texts: mx.array, found: Iterable[tuple[int, mx.array]]) -> mx.array:
    """Return the embeddings of a row's next tokens, with features where images are."""
    pieces, at = [], 0
    for begin, features in found:
        pieces += [texts[at:begin], features[:, : texts.shape[-1]].astype(texts.dtype)]
        at = begin + len(features)
    return mx.concatenate([*pieces, texts[at:]]) if pieces else texts
