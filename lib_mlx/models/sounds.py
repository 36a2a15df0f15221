"""From the content of a sound file to samples. Any thread; whatever is wrong with a file is a clear error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import InvalidArgument
from lib_mlx.models import upstream_vlm

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("wav", "mp3", "flac", "ogg")
MAX_CHANNELS = 8
MAX_RATE = 192_000
_MAX_RATIO = 2000  # of two rates in lowest terms: the resampler's filter has 128 times as many taps
_CHUNK = 1 << 16  # frames
_HINT = f"Send one of {', '.join(FORMATS)}."


def decode(content: bytes, declared: str | None, rate: int, most_seconds: float, param: str) -> NDArray[np.float32]:
    """Return the samples of a file, of shape (samples,), between -1 and 1, at `rate` a second, channels averaged.

    Args:
        content: of the file.
        declared: what its sender says that it is; None: nothing.
        rate: samples a second that are wanted.
        most_seconds: the longest that is read.
        param: the field it came from, for errors.

    Raises:
        InvalidArgument: it is no sound of a known format, not what was declared, damaged, empty or too long.
    """
    kind = _kind(content)
    if kind is None:
        raise InvalidArgument("The sound is of no known format.", hint=_HINT, param=param)
    if declared is not None and declared != kind:
        raise InvalidArgument(
            f"The sound is {kind!r} and not {declared!r}.", hint="Name what it is.", param=f"{param}.format"
        )
    samples, own_rate = _samples(content, kind, rate, most_seconds, param)
    if not len(samples):
        raise InvalidArgument("The sound is empty.", hint="Send one that lasts.", param=param)
    mono = samples.astype(np.float32) / 32768  # as mlx-vlm does it: means after the scaling
    return upstream_vlm.resample(mono.mean(axis=1), own_rate, rate)


def _kind(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return "wav"
    if content[:4] == b"fLaC":
        return "flac"
    if content[:4] == b"OggS":
        return "ogg"
    if content[:3] == b"ID3" or (len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0):
        return "mp3"
    return None


def _samples(content: bytes, kind: str, rate: int, most_seconds: float, param: str) -> tuple[NDArray[np.int16], int]:
    """Return what a file holds, of shape (frames, channels), and its rate."""
    try:
        return _unpacked(content, kind, rate, most_seconds, param)
    except InvalidArgument:
        raise
    except Exception as error:  # noqa: BLE001 - the decoder raises what it likes for a damaged file
        raise InvalidArgument(
            f"The sound cannot be read: {str(error)[:200] or type(error).__name__}.",
            hint="The file is damaged, or its codec unknown; send it again as wav.",
            param=param,
        ) from None


def _unpacked(content: bytes, kind: str, rate: int, most_seconds: float, param: str) -> tuple[NDArray[np.int16], int]:
    import miniaudio

    facts: dict[str, Any] = {
        "wav": miniaudio.wav_get_info,
        "mp3": miniaudio.mp3_get_info,
        "flac": miniaudio.flac_get_info,
        "ogg": miniaudio.vorbis_get_info,
    }
    info = facts[kind](content)
    channels, own_rate = int(info.nchannels), int(info.sample_rate)
    _check(channels, own_rate, rate, param)
    pieces, frames = [np.empty((0, channels), np.int16)], 0
    # In pieces: a few kilobytes of silence can unpack to gigabytes, whatever their head says.
    for piece in miniaudio.stream_memory(content, miniaudio.SampleFormat.SIGNED16, channels, own_rate, _CHUNK):
        pieces.append(np.frombuffer(piece, np.int16).reshape(-1, channels))
        frames += len(pieces[-1])
        if frames > most_seconds * own_rate:
            raise InvalidArgument(
                f"The sound lasts longer than the {most_seconds:g} s that this model hears at once.",
                hint="Send a shorter one, or several.",
                param=param,
            )
    return np.concatenate(pieces), own_rate


def _check(channels: int, own: int, rate: int, param: str) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidArgument(
            f"The sound has {channels} channels; {MAX_CHANNELS} at most are read.", hint="Mix it down.", param=param
        )
    if not 0 < own <= MAX_RATE or max(own, rate) // math.gcd(own, rate) > _MAX_RATIO:
        raise InvalidArgument(
            f"A sound of {own} samples a second cannot be made one of {rate}.",
            hint=f"Resample it to {rate}.",
            param=param,
        )
