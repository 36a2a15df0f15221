"""Have a model that hears answer what is said into a microphone, utterance by utterance.

    python microphone.py http://127.0.0.1:8642/v1 "Answer what you hear."

What is louder than the room for long enough is an utterance; it ends with half a second of quiet. A WAV file in place
of the microphone (`--source speech.wav`) is cut in the same way. Needs `pip install openai numpy miniaudio`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import math
import queue
import wave
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import openai

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RATE = 16_000
FRAME = RATE // 50  # 20 ms
_ABOVE_DB = 10.0  # speech is so much louder than the room
_QUIETEST_DB = -50.0  # and never quieter than this
_LEARNING = 0.05  # of the room's loudness, from each frame of quiet
_BEGIN, _END = 3, 25  # frames: louder than the room in a row; quiet in a row
_BEFORE = 10  # frames kept from before it began
_LONGEST = 28 * 50  # frames


@dataclass(frozen=True)
class Utterance:
    """What was said: 16-bit samples, and when it began, in seconds."""

    samples: np.ndarray
    begin: float

    @property
    def end(self) -> float:
        """When it ended, in seconds."""
        return self.begin + len(self.samples) / RATE

    def wav(self) -> bytes:
        """Return it as a file."""
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(RATE)
            writer.writeframes(self.samples.astype("<i2").tobytes())
        return file.getvalue()


def utterances(frames: Iterable[np.ndarray]) -> Iterator[Utterance]:
    """Cut frames of 20 ms of 16-bit samples into utterances."""
    room: float | None = None
    heard: deque[np.ndarray] = deque(maxlen=_BEFORE + _BEGIN)
    speech: list[np.ndarray] = []
    loud = quiet = number = 0
    for number, frame in enumerate(frames, 1):
        level = _decibels(frame)
        room = level if room is None else room
        is_loud = level > max(room + _ABOVE_DB, _QUIETEST_DB)
        loud, quiet = (loud + 1, 0) if is_loud else (0, quiet + 1)
        if speech:
            speech.append(frame)
            if quiet == _END or len(speech) == _LONGEST:
                yield _utterance(speech, number)
                speech.clear()
                heard.clear()
                loud = 0
            continue
        heard.append(frame)
        if not is_loud:
            room += _LEARNING * (level - room)
        elif loud == _BEGIN:
            speech = list(heard)
    if speech:
        yield _utterance(speech, number)


def _utterance(frames: list[np.ndarray], number: int) -> Utterance:
    return Utterance(np.concatenate(frames), (number - len(frames)) * FRAME / RATE)


def _decibels(frame: np.ndarray) -> float:
    power = float(np.mean((frame.astype(np.float64) / 32768) ** 2))
    return 10 * math.log10(max(power, 1e-10))


def from_file(path: str) -> Iterator[np.ndarray]:
    """Yield the frames of a WAV file of 16-bit samples at 16 kHz, one channel."""
    with wave.open(path, "rb") as reader:
        facts = (reader.getnchannels(), reader.getsampwidth(), reader.getframerate())
        if facts != (1, 2, RATE):
            raise ValueError(f"{path} must have one channel of 16-bit samples at {RATE} Hz")
        while data := reader.readframes(FRAME):
            yield np.frombuffer(data, "<i2")


def from_microphone() -> Iterator[np.ndarray]:
    """Yield frames as they are heard, without an end; what comes while a model answers waits."""
    import miniaudio

    pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def take() -> Any:
        while True:
            pieces.put(bytes((yield)))

    with contextlib.closing(
        miniaudio.CaptureDevice(miniaudio.SampleFormat.SIGNED16, nchannels=1, sample_rate=RATE)
    ) as device:
        sink = take()
        next(sink)
        device.start(sink)
        left = b""
        while True:
            left += pieces.get()
            while len(left) >= 2 * FRAME:
                yield np.frombuffer(left[: 2 * FRAME], "<i2")
                left = left[2 * FRAME :]


def ask(client: openai.OpenAI, model: str, prompt: str, utterance: Utterance) -> Iterator[str]:
    """Yield the answer to an utterance as it comes."""
    data = base64.b64encode(utterance.wav()).decode()
    content: Any = [
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "text", "text": prompt},
    ]
    messages: Any = [{"role": "user", "content": content}]
    with client.chat.completions.create(model=model, messages=messages, max_tokens=100, stream=True) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("prompt")
    parser.add_argument("--model", help="the server's first if left out")
    parser.add_argument("--source", help="a WAV file in place of the microphone")
    options = parser.parse_args()
    with openai.OpenAI(base_url=options.base_url, api_key="unused") as client:
        model = options.model or client.models.list().data[0].id
        for utterance in utterances(from_file(options.source) if options.source else from_microphone()):
            print(f"{utterance.begin:.2f}-{utterance.end:.2f} s: ", end="")
            for piece in ask(client, model, options.prompt, utterance):
                print(piece, end="", flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
