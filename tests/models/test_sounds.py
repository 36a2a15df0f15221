"""Sound files, whole and broken: what comes out of them, and what is said of the others."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest

from lib_mlx.errors import InvalidArgument
from lib_mlx.models.sounds import decode
from tests.models.hearing import RATE, tone, written

WHOLE = written(tone(0.2))


@pytest.mark.parametrize(("kind", "tolerance"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.1)])
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_kinds_and_rates(kind: str, tolerance: float, rate: int) -> None:
    """Every kind at every rate gives the samples that went in."""
    got = decode(written(tone(0.5, 300, rate), kind, rate), kind.lower(), RATE, 30, "a")
    expected = tone(0.5, 300)
    middle = slice(1000, 6000)  # encoders and resamplers blur the ends
    if kind == "MP3":  # which begins with a delay
        shift = int(np.argmax(np.correlate(got[:9000], expected[middle], "valid")))
        assert np.abs(got[shift : shift + 5000] - expected[middle]).max() < tolerance
    else:
        assert len(got) == len(expected)
        assert np.abs(got[middle] - expected[middle]).max() < max(tolerance, 0 if rate == RATE else 0.02)


@pytest.mark.parametrize("depth", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW"])
def test_depths(depth: str) -> None:
    """Samples of any depth are heard."""
    got = decode(written(tone(0.2), subtype=depth), "wav", RATE, 30, "a")
    assert np.abs(got - tone(0.2)).max() < 0.02


def test_channels_are_averaged() -> None:
    """Two that are opposite are silence."""
    one = tone(0.2)
    assert np.abs(decode(written(np.stack([one, -one], axis=1)), None, RATE, 30, "a")).max() < 1e-4


def wav_head(channels: int = 1, rate: int = RATE, seconds: float = 0.1) -> bytes:
    """A WAV file that says so of itself."""
    data = b"\1\0" * int(channels * min(rate, RATE) * seconds)
    head = struct.pack("<HHIIHH", 1, channels, rate, (rate * channels * 2) & 0xFFFFFFFF, channels * 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt \x10\0\0\0"
        + head
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


@pytest.mark.parametrize(
    ("content", "declared", "words"),
    [
        (b"", None, "no known format"),
        (b"RIFFabcdWAVEjunk", None, "cannot be read"),
        (b"\0" * 1000, "wav", "no known format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, None, "no known format"),
        (WHOLE, "mp3", "is 'wav' and not 'mp3'"),
        (b"ID3" + b"\0" * 100, "mp3", "cannot be read"),
        (b"OggS" + b"\0" * 100, "ogg", "cannot be read"),
        (b"fLaC" + b"\0" * 100, "flac", "cannot be read"),
        (written(np.zeros(0, np.float32)), None, "is empty"),
        (wav_head(channels=9), None, "9 channels"),
        (wav_head(rate=15_991), None, "15991 samples a second"),
        (wav_head(rate=200_000), None, "200000 samples a second"),
        (wav_head(rate=0), None, "cannot be"),
    ],
)
def test_broken_files(content: bytes, declared: str | None, words: str) -> None:
    """Each is an error that names the field and says what is wrong."""
    with pytest.raises(InvalidArgument, match=words) as caught:
        decode(content, declared, RATE, 30, "input_audio")
    assert caught.value.param == ("input_audio.format" if "and not" in words else "input_audio")


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_truncated_files(kind: str) -> None:
    """What of them is there is heard, or they are refused; nothing else happens."""
    whole = written(tone(1), kind)
    for cut in range(0, len(whole), max(1, len(whole) // 23)):
        try:
            decode(whole[:cut], None, RATE, 30, "a")
        except InvalidArgument:
            continue


def test_a_file_that_unpacks_to_hours() -> None:
    """It is given up where the limit is, whatever its head says."""
    file = written(np.zeros(RATE * 3600, np.float32), "FLAC")
    assert len(file) < 1 << 20
    lying = bytearray(file)
    lying[21:26] = bytes([lying[21] & 0xF0, 0, 0, 0, 0])  # "of unknown length"
    for content in (file, bytes(lying)):
        before = time.process_time()
        with pytest.raises(InvalidArgument, match="longer than the 30 s"):
            decode(content, None, RATE, 30, "a")
        assert time.process_time() - before < 2
