"""A model that hears, with random weights: as mlx-vlm computes it, from the file on, alone, in pieces, in a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

import lib_mlx
from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Image, PixelBounds, Sound
from lib_mlx.models.checkpoint import inspect
from lib_mlx.models.loader import load_tokenizer, load_weights
from lib_mlx.models.media_reader import MediaReader
from lib_mlx.models.upstream_vlm import load_processor
from lib_mlx.models.vision_network import RowState
from tests.fixtures import GUI
from tests.models.hearing import AUDIO, IMAGE, build, tone, written
from tests.models.vision import greedy_tokens, request_of

if TYPE_CHECKING:
    from pathlib import Path

    from lib_mlx.models.vision_network import VisionNetwork

PROMPT = [5, AUDIO, 6, 7, 8]
SHOT = (GUI / "screenshots/icon.png").read_bytes()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("hearing") / "tiny")


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> VisionNetwork:
    return load(checkpoint)


@pytest.fixture(scope="module")
def reader(checkpoint: Path, network: VisionNetwork) -> MediaReader:
    inspected = inspect(checkpoint)
    return MediaReader(inspected, load_tokenizer(inspected), network.placeholders, PixelBounds())


def load(path: Path) -> VisionNetwork:
    loaded = load_weights(inspect(path), lambda _: None, lambda: False).vision
    assert loaded is not None
    return loaded


def ours(network: VisionNetwork, reader: MediaReader, prompt: list[int], step: int, *given: Sound | Image) -> mx.array:
    """Logits, the prompt processed so many tokens at a time."""
    media = reader.read(request_of(*given))
    numbers, placed, _ = reader.place(prompt, media, ())
    plan = network.plan(placed)
    for one in media:
        plan.features[one.digest] = network.encode(one.kind, one.shape.tokens, reader.inputs(one))
    cache = [*network.make_cache(), RowState.new(plan)]
    tokens = mx.array([numbers])
    parts = [network(tokens[:, at : at + step], cache) for at in range(0, len(numbers), step)]
    return mx.concatenate(parts, axis=1)


def prepared(checkpoint: Path, sound: Path, text: str, **more: Any) -> dict[str, Any]:
    """What mlx-vlm makes of a file and a text."""
    from mlx_vlm import prepare_inputs

    made: dict[str, Any] = prepare_inputs(load_processor(inspect(checkpoint)), audio=[str(sound)], prompts=text, **more)
    return made


@pytest.mark.parametrize("step", [10_000, 7])
@pytest.mark.parametrize(("kind", "rate"), [("WAV", 16_000), ("WAV", 44_100), ("FLAC", 22_050), ("MP3", 48_000)])
def test_logits_are_those_of_mlx_vlm(
    checkpoint: Path, network: VisionNetwork, reader: MediaReader, tmp_path: Path, step: int, kind: str, rate: int
) -> None:
    """From files of several kinds and rates, in stereo; embeddings agree where the sound stands."""
    samples = np.stack([tone(1.3, 300, rate), tone(1.3, 500, rate)], axis=1)
    file = tmp_path / f"sound.{kind.lower()}"
    file.write_bytes(written(samples, kind, rate))
    inputs = prepared(checkpoint, file, "Hi<|vision_pad|>, what?")
    embeddings = network.whole.get_input_embeddings(**inputs)
    tokens = inputs["input_ids"]
    options = {name: value for name, value in embeddings.to_dict().items() if value is not None}
    expected = network.language(tokens, cache=network.make_cache(), **options).logits

    (medium,) = reader.read(request_of(Sound(file.read_bytes(), kind.lower())))
    heard = network.encode("audio", medium.shape.tokens, reader.inputs(medium))
    theirs = embeddings.inputs_embeds[0][mx.array(np.flatnonzero(np.array(tokens[0]) == AUDIO))]
    assert heard.shape[0] == 33  # one for 40 ms
    assert np.abs(np.array(heard - theirs)).max() < 1e-4
    prompt = network_prompt(tokens[0].tolist())
    got = ours(network, reader, prompt, step, Sound(file.read_bytes(), kind.lower()))
    assert np.abs(np.array(got - expected)).max() < 1e-3


def network_prompt(tokens: list[int]) -> list[int]:
    """Prompt tokens before they are expanded: a placeholder alone for the sound and what is put around it."""
    first = tokens.index(AUDIO)
    return [*tokens[: first - 1], AUDIO, *tokens[first + tokens.count(AUDIO) + 1 :]]


def test_sounds_beside_images(network: VisionNetwork, reader: MediaReader) -> None:
    """Each stands in its place, whichever comes first."""
    sound, image = Sound(written(tone(0.5))), Image(SHOT)
    both = ours(network, reader, [5, AUDIO, 6, IMAGE, 7], 10_000, sound, image)
    pieces = ours(network, reader, [5, AUDIO, 6, IMAGE, 7], 5, sound, image)
    turned = ours(network, reader, [5, IMAGE, 6, AUDIO, 7], 10_000, image, sound)
    assert np.abs(np.array(both - pieces)).max() < 1e-3
    assert np.abs(np.array(both[0, -1] - turned[0, -1])).max() > 1e-3


def test_greedy_tokens_are_those_of_mlx_vlm(checkpoint: Path, network: VisionNetwork, tmp_path: Path) -> None:
    """Through the whole engine: alone, and beside text, an image and another sound."""
    file = tmp_path / "sound.wav"
    file.write_bytes(written(tone(1.3)))
    sound, other = Sound(file.read_bytes()), Sound(written(tone(0.4, 900)))
    contents: list[tuple[Any, ...]] = [(sound, "What?"), ("Hello",), (Image(SHOT), "See", other), (other, sound)]
    with lib_mlx.load_model(checkpoint, prefix_cache_bytes=0) as model:
        alone = [greedy_tokens(model, parts)[0] for parts in contents]
        assert greedy_tokens(model, *contents) == alone

    text = "<|im_start|>user\n<|vision_pad|>What?<|im_end|>\n<|im_start|>assistant\n"
    inputs = prepared(checkpoint, file, text)
    embeddings = network.whole.get_input_embeddings(**inputs)
    options = {name: value for name, value in embeddings.to_dict().items() if value is not None}
    cache, made = network.make_cache(), []
    token = mx.argmax(network.language(inputs["input_ids"], cache=cache, **options).logits[0, -1])
    for _ in range(8):
        made.append(int(token.item()))
        token = mx.argmax(network.language(token.reshape(1, 1), cache=cache).logits[0, -1])
    assert alone[0] == made


def test_attention_in_both_directions(tmp_path: Path, reader: MediaReader) -> None:
    """Where image tokens see what comes after them, images are refused and sounds are not."""
    network = load(build(tmp_path / "both", use_bidirectional_attention="vision"))
    with pytest.raises(UnsupportedFeature, match="both directions"):
        network.encode("image", [IMAGE], {})
    (medium,) = reader.read(request_of(Sound(written(tone(0.1)))))
    assert network.encode("audio", medium.shape.tokens, reader.inputs(medium)).shape == (3, 64)


def test_models_without_an_audio_encoder(tmp_path: Path) -> None:
    """They have no place for sounds, though they name a token for them."""
    import json

    path = build(tmp_path / "deaf")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "audio_config": None}))
    assert set(load(path).placeholders) == {"image"}


def test_how_long_sounds_are(reader: MediaReader) -> None:
    """Processors cut off what they have no tokens for; here that is refused."""
    with pytest.raises(InvalidArgument, match="longer than the 30 s") as caught:
        reader.read(request_of(Sound(written(tone(30.1)), param="audio.0")))
    assert caught.value.param == "audio.0"
    (medium,) = reader.read(request_of(Sound(written(tone(30.0)))))
    assert medium.shape.tokens.count(AUDIO) == 750


def test_the_same_samples_are_the_same_sound(reader: MediaReader) -> None:
    """Whatever file they come in."""
    samples = (tone(0.3) * 32767).astype(np.int16)
    files = [written(samples), written(samples, "FLAC")]
    first, second = reader.read(request_of(*map(Sound, files)))
    assert first.digest == second.digest
