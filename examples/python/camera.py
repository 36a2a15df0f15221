"""Ask a vision model about what a camera sees, again and again, each time about the newest frame.

    python camera.py http://127.0.0.1:8642/v1 "What is the person doing?"

A file in place of a camera (`--source film.mp4`) plays at its own speed: frames that come while the model answers are
not shown to it. Needs `pip install openai opencv-python`.
"""

from __future__ import annotations

import argparse
import base64
import threading
import time
from typing import TYPE_CHECKING, Any

import cv2
import openai

if TYPE_CHECKING:
    from collections.abc import Iterator


class LatestFrame:
    """The newest frame of a camera or a file, read by a thread of its own; older ones are dropped."""

    def __init__(self, source: int | str) -> None:
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise OSError(f"{source!r} cannot be opened")
        live = isinstance(source, int)
        self._pause_s = 0.0 if live else 1 / (self._capture.get(cv2.CAP_PROP_FPS) or 25)
        self._changed = threading.Condition()
        self._frame: Any = None
        self._number = 0
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended:
            found, frame = self._capture.read()
            with self._changed:
                self._ended |= not found
                if found:
                    self._frame, self._number = frame, self._number + 1
                self._changed.notify_all()
            time.sleep(self._pause_s)
        self._capture.release()

    def frames(self) -> Iterator[tuple[int, Any]]:
        """Yield the newest frame and its number, whenever there is a newer one than the last."""
        seen = 0
        while True:
            with self._changed:
                while not self._ended and self._number <= seen:
                    self._changed.wait()
                if self._number <= seen:
                    return
                seen, frame = self._number, self._frame
            yield seen, frame

    def close(self) -> None:
        """Let go of the camera."""
        self._ended = True
        self._thread.join()


def ask(client: openai.OpenAI, model: str, question: str, frame: Any) -> Iterator[str]:
    """Yield the answer to a question about a frame as it comes."""
    done, jpeg = cv2.imencode(".jpg", frame)
    if not done:
        raise ValueError("the frame cannot be encoded")
    url = f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
    content: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    messages: Any = [{"role": "user", "content": content}]
    with client.chat.completions.create(model=model, messages=messages, max_tokens=100, stream=True) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("question")
    parser.add_argument("--model", help="the server's first if left out")
    parser.add_argument("--source", default="0", help="a camera's number or a file")
    parser.add_argument("--times", type=int, default=0, help="end after so many answers")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.base_url, api_key="unused")
    model = options.model or client.models.list().data[0].id
    camera = LatestFrame(int(options.source) if options.source.isdigit() else options.source)
    try:
        for times, (number, frame) in enumerate(camera.frames(), 1):
            print(f"frame {number}: ", end="")
            for piece in ask(client, model, options.question, frame):
                print(piece, end="", flush=True)
            print()
            if times == options.times:
                return
    finally:
        camera.close()
        client.close()


if __name__ == "__main__":
    main()
